"The protocol trains what it lists, and judges by its own rule"
from dataclasses import replace
import numpy as np
import pandas as pd
import pytest

pytest.importorskip('mmdet')
from scipy import stats
from pisa.lab import protocol, runs
from pisa.lab.experiments import experiment


def test_interval_and_verdict_are_those_of_a_t_test():
    rng = np.random.default_rng(0)
    for _ in range(50):
        v = rng.normal(rng.normal(), 1, rng.integers(3, 9))
        found, test = protocol.judged(v), stats.ttest_1samp(v, 0)
        assert np.allclose([found['low'], found['high']], test.confidence_interval(.95))
        assert (found['verdict'] != 'open') == (test.pvalue < .05)


def test_seeds_of_the_rows():
    "As many as each group says, from 1 up; the baselines of the tables are in an earlier group, with at least as many"
    table = pd.DataFrame(protocol.planned(), columns=['data', 'experiment'])
    table['row'] = [(d, replace(e, seed=0)) for d, e in zip(table.data, table.experiment)]
    seeds = {row: sorted(e.seed for e in part.experiment) for row, part in table.groupby('row', sort=False)}
    assert all(s == [*range(1, len(s) + 1)] for s in seeds.values())
    for g in protocol.groups():
        for e in g.trainings: assert len(seeds[g.data, e]) == g.seeds
    for name in ('table4/baseline', 'table4/isr-carl', 'table3/C-R'):
        from pisa.lab.rows import row_experiment
        assert len(seeds['shapes', row_experiment(name, scale='mini', seed=0)]) == 6


def test_it_trains_what_is_planned_and_goes_on(tmp_path, spec, monkeypatch):
    tiny = 'train_cfg.max_epochs=1 train_dataloader.dataset.indices=8'
    todo = [('shapes', experiment(method=m, seed=1, overrides=tiny)) for m in ('baseline', 'pisa')] + [('bccd', experiment(dataset='voc'))]
    monkeypatch.setattr(protocol, 'planned', lambda: iter(todo))
    monkeypatch.setattr(protocol, 'load', lambda *args: spec)
    protocol.train_planned(runs=tmp_path, first=1)
    assert [m for m in runs.load(tmp_path).method] == ['baseline']
    protocol.train_planned(runs=tmp_path)  # without photographs
    assert sorted(runs.load(tmp_path).method) == ['baseline', 'pisa']
