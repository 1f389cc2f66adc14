"The protocol trains what it lists, and judges by its own rule"
import subprocess
import sys
from dataclasses import replace
import numpy as np
import pandas as pd
import pytest

pytest.importorskip('mmdet')
from scipy import stats
from pisa.lab import protocol, runs, train as training
from pisa.lab.data import load
from pisa.lab.experiments import experiment
from pisa.lab.protocol import FINGERPRINTS, FIRST, PRIMARY
from pisa.lab.rows import TABLES, row_experiment
from refusal import refused


def test_interval_and_verdict_are_those_of_a_t_test():
    rng = np.random.default_rng(0)
    for _ in range(50):
        v = rng.normal(rng.normal(), 1, rng.integers(3, 9))
        found, test = protocol.judged(v, 'differ', len(v)), stats.ttest_1samp(v, 0)
        assert np.allclose([found['low'], found['high'], found['p']], [*test.confidence_interval(.95), test.pvalue])
        assert (found['verdict'] == 'holds') == (test.pvalue < .05)
        assert protocol.judged(v, 'differ', len(v) + 1)['verdict'] == 'unfinished'


def test_holm_against_loops():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.random(rng.integers(1, 14))**3
        order, worst, want = sorted(range(len(p)), key=lambda i: p[i]), 0, {}
        for k, i in enumerate(order):
            worst = max(worst, min(1, (len(p) - k)*p[i]))
            want[i] = worst
        assert np.allclose(protocol.holm(p), [want[i] for i in range(len(p))])


def test_seeds_of_the_rows():
    "As many as each group says, from the first up; all rows of the tables are there, and their baselines have as many seeds"
    table = pd.DataFrame(protocol.planned(), columns=['data', 'experiment'])
    table['row'] = [(d, replace(e, seed=0)) for d, e in zip(table.data, table.experiment)]
    seeds = {row: sorted(e.seed for e in part.experiment) for row, part in table.groupby('row', sort=False)}
    assert all(s == [*range(FIRST, FIRST + len(s))] for s in seeds.values())
    for g in protocol.groups():
        for e in g.trainings: assert len(seeds[g.data, e]) == g.seeds
    of = lambda name: len(seeds['shapes', row_experiment(name, scale='mini', seed=0)])
    for n in (1, 3, 4, 5, 6, 7, 'text'):
        for r in TABLES[n].rows: assert of(r.name) <= of(r.base)


def made_up(c, gain, seeds, **more):
    "Records of a comparison; the second row is `gain` above the first"
    rng = np.random.default_rng(0)
    rows = [dict(vars(e), seed=FIRST + s, recipe=5, machine_processes=1, machine_threads=1, git_dirty=False, data_fingerprint=FINGERPRINTS[c.data],
                 AP=(50 + gain*(i % 2) + rng.normal()/10), AP50=70., AP75=60. + gain*(i % 2) + rng.normal()/10) | more for pair in c.pairs.values() for i, e in enumerate(pair) for s in range(seeds)]
    return pd.DataFrame(rows).assign(id=[f'run{i}' for i in range(len(rows))])


def table_of(monkeypatch, tmp_path, records, lost=''):
    monkeypatch.setattr(protocol.store, 'load', lambda *args, **more: records)
    (tmp_path/'records').mkdir(exist_ok=True)
    (tmp_path/'records/diverged.txt').write_text(lost)
    return protocol.judge(PRIMARY, tmp_path).set_index('expects')


@pytest.mark.filterwarnings("ignore:.*is planned, but does not count")
def test_what_counts(monkeypatch, tmp_path):
    "Planned seeds, recipe, precision, data, one thread, a clean commit; all seeds have to be there"
    c = PRIMARY[0]
    verdict = lambda records, lost='': table_of(monkeypatch, tmp_path, records, lost).verdict[c.expects]
    assert verdict(made_up(c, -2., 6)) == 'holds'  # a is before b
    assert verdict(made_up(c, 2., 6)) == 'fails'
    assert verdict(made_up(c, -2., 5)) == 'unfinished'
    for wrong in (dict(recipe=4), dict(precision='float32'), dict(machine_threads=2), dict(machine_processes=2), dict(git_dirty=True), dict(data_fingerprint='x'), dict(seed=1)):
        assert not table_of(monkeypatch, tmp_path, made_up(c, -2., 6, **wrong)).seeds.any()
    more = pd.concat([made_up(c, -2., 6), made_up(c, 9., 8)[lambda t: t.seed >= FIRST + 6]])
    assert verdict(more) == 'holds' and table_of(monkeypatch, tmp_path, more).seeds[c.expects] == 6
    assert verdict(made_up(c, -2., 6), replace(c.pairs['Faster R-CNN'][1], seed=FIRST + 5).id(FINGERPRINTS['shapes'])) == 'diverged'
    refused(lambda: verdict(pd.concat([made_up(c, -2., 6)]*2)), 'is there twice')


def test_it_trains_what_is_planned_records_it_and_goes_on(tmp_path, spec, monkeypatch):
    tiny = 'train_cfg.max_epochs=1 train_dataloader.dataset.indices=8'
    todo = [('shapes', experiment(d, m, seed=1, overrides=tiny)) for d in ('faster_rcnn', 'ssd300') for m in ('baseline', 'pisa')]
    monkeypatch.setattr(protocol, 'planned', lambda: iter(todo))
    monkeypatch.setattr(protocol, 'load', lambda *args: spec)
    refused(lambda: protocol.train_planned(tmp_path, tmp_path), 'shapes has the fingerprint')
    monkeypatch.setattr(protocol, 'FINGERPRINTS', dict.fromkeys(FINGERPRINTS, spec.fingerprint))
    methods = lambda: [*runs.load(tmp_path, own=False).method]
    whole, todo[1:] = [*todo], []
    protocol.train_planned(tmp_path, tmp_path)
    assert methods() == ['baseline']
    todo[:] = whole
    trained, busy, real = [], [todo[1][1]], training.train
    def train(exp, *args, **more):
        if exp in busy: raise BlockingIOError('another process trains it')
        trained.append((exp.detector, exp.method))
        if exp.detector == 'ssd300': raise FloatingPointError('the loss is nan')
        return real(exp, *args, **more)
    monkeypatch.setattr(training, "train", train)
    protocol.train_planned(tmp_path, tmp_path)
    assert methods() == ['baseline'] and trained == [('ssd300', 'baseline'), ('ssd300', 'pisa')]  # another process has Faster R-CNN with PISA
    busy.clear()
    for _ in range(2): protocol.train_planned(tmp_path, tmp_path)
    assert methods() == ['baseline', 'pisa'] and trained[2:] == [('faster_rcnn', 'pisa')] and protocol.diverged(tmp_path) == {e.id(spec.fingerprint) for _, e in todo[2:]}


def test_it_can_run_several_times_at_once(tmp_path):
    "Four processes and eight short trainings: each is recorded once, and no process fails"
    code = '''
import sys
from pisa.lab import protocol
from pisa.lab.data import load
from pisa.lab.experiments import experiment
spec = load('shapes', n_train=16, n_val=8)
protocol.load, protocol.FINGERPRINTS = lambda *args: spec, dict.fromkeys(protocol.FINGERPRINTS, spec.fingerprint)
todo = [('shapes', experiment('retinanet', seed=s, overrides='train_cfg.max_epochs=1 train_dataloader.dataset.indices=8')) for s in range(8)]
protocol.planned = lambda: iter(todo)
protocol.train_planned(sys.argv[1], sys.argv[1])'''
    load('shapes', n_train=16, n_val=8)
    logs = [(tmp_path/f'{i}.log') for i in range(4)]
    started = [subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=log.open('w'), stderr=subprocess.STDOUT) for log in logs]
    for p, log in zip(started, logs): assert not p.wait(), log.read_text()
    assert len(runs.load(tmp_path, own=False)) == 8


def test_without_records_nothing_is_judged(tmp_path):
    (tmp_path/'records').mkdir()
    found = protocol.judge(PRIMARY, tmp_path)
    assert set(found.verdict) == {'unfinished'} and not found.seeds.any() and found['mean'].isna().all()


def test_a_planned_run_that_does_not_count_is_named(monkeypatch, tmp_path):
    c = PRIMARY[0]
    wrong = made_up(c, -2., 6)
    wrong.loc[3, 'machine_threads'] = 2
    with pytest.warns(UserWarning, match=f'{wrong.id[3]} does not count: it needs recipe 5'): table_of(monkeypatch, tmp_path, wrong)
