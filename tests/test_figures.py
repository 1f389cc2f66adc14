"Figures: what they compute, by loops; what they say, on samples whose answer is known; what they do without runs"
import dataclasses
import json
import re
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip('mmdet')
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from made_up import made_up_runs
from pisa.lab import figures, runs, tables
from pisa.lab.experiments import RECIPE
from pisa.lab.samples import Study
from notebooks import log, papermill
from refusal import refused

ROOT = Path(__file__).resolve().parents[1]


def positives(rng, images=12, objects=3, each=6, classes=2):
    "Rows as `with_ranks` has them, by chance"
    gt = np.arange(images * objects).repeat(each)
    table = pd.DataFrame({'image': gt // objects, 'gt': gt, 'label': gt % classes, 'iou': rng.rand(len(gt)).astype(np.float32), 'score': rng.rand(len(gt))})
    table['loss'] = -np.log(table.score)
    table['local_rank'] = table.groupby('gt').iou.rank(ascending=False).astype(int) - 1
    table['image_rank'] = table.sort_values(['local_rank', 'iou'], ascending=[True, False]).groupby('image').cumcount()
    return table


def trained(name, score, images=40, seed=0):
    "Runs of three seeds whose scores are a function of the IoU (and of chance), 0.5 to 1"
    return [of_seed(f'{name}{s}', score, images, s) for s in range(seed, seed + 3)]


def of_seed(name, score, images, seed):
    rng = np.random.RandomState(seed)
    pos = positives(rng, images)
    iou = 0.5 + pos.iou / 2
    p = np.clip(score(iou.to_numpy(), pos.local_rank.to_numpy(), rng.rand(len(pos))), 0.01, 0.99)
    objects = pd.DataFrame({'image': np.arange(images * 3) // 3, 'label': np.arange(images * 3) % 2})
    objects['x1'], objects['y1'] = 44. * (objects.index % 3), 10.
    objects['x2'], objects['y2'] = objects.x1 + 30, objects.y1 + 30
    own = objects.loc[pos['gt']].reset_index(drop=True)  # a box cut off at the right to the share `iou`
    samples = pos.assign(iou=iou, score=p, loss=-np.log(p), x1=own.x1, y1=own.y1, x2=own.x1 + 30 * iou, y2=own.y2)
    found = samples.loc[samples.groupby('gt').score.idxmax()]
    found = found.assign(sample=found.index)[['image', 'label', 'score', 'x1', 'y1', 'x2', 'y2', 'sample']]
    curve = np.linspace(1, 0, 101)
    study = Study(name, samples.drop(columns=['local_rank', 'image_rank']), objects, found, images, 0,
                  precision=np.stack([np.tile(curve ** k, (10, 1)) for k in (2, 0.5, 1)]), raised_by=np.array([0, 5., 0.5]), loss_sum=np.array([20., 18, 18]))
    return figures.Trained(dict(detector='faster_rcnn', backbone='none', scale='mini', seed=seed, recipe=0, precision='float32', data=dict(name='shapes', note='made up')), study, {0: 30., 1: 20., 2: 25.})


FLAT = trained('flat', lambda iou, rank, chance: 0.4 + 0.2 * chance)
STEEP = trained('steep', lambda iou, rank, chance: 0.1 + 1.6 * (iou - 0.5) - 0.1 * rank + 0.2 * chance)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def test_three_of_each_by_loops():
    pos = positives(np.random.RandomState(1))
    kinds = figures.three_of_each(pos)
    for image, own in pos.groupby('image'):
        rows = own.to_dict('index')
        assert set(kinds.loc['hard'].query('image == @image').index) == set(sorted(rows, key=lambda i: -rows[i]['loss'])[:3])
        best = sorted(rows, key=lambda i: (rows[i]['local_rank'], -rows[i]['iou']))[:3]
        assert set(kinds.loc['prime'].query('image == @image').index) == set(best)
        assert len({rows[i]['gt'] for i in best}) == 3  # the best of three objects
        assert kinds.loc['random'].query('image == @image').index.isin(own.index).sum() == 3


def test_isr_weights_by_the_equations():
    pos = positives(np.random.RandomState(2), images=16)
    prime = figures.selected(pos).loc['prime']
    assert prime.groupby('image').size().eq(16).all()
    for first in (0, 8):
        own = prime[(prime.image >= first) & (prime.image < first + 8)]
        w = {}
        for label, cls in own.groupby('label'):  # Eq. 1 and 2, with gamma 2 and beta 0
            local = {i: (cls['gt'].eq(r['gt']) & (cls.iou > r.iou)).sum() for i, r in cls.iterrows()}
            order = sorted(cls.index, key=lambda i: (local[i], -cls.iou[i]))
            w.update({i: ((len(cls) - r) / len(cls)) ** 2 for r, i in enumerate(order)})
        w = pd.Series(w).loc[own.index]
        np.testing.assert_allclose(own.weight, w * own.loss.sum() / (w * own.loss).sum(), rtol=1e-4)  # Eq. 3


def test_hard_ones_by_loops():
    pos = positives(np.random.RandomState(3))
    hard = figures.selected(pos).loc['hard']
    for image, own in pos.groupby('image'):
        assert set(hard[hard.image == image].index) == set(own.nlargest(16, 'loss').index)


def test_interval_is_that_of_a_t_test():
    change = np.array([.4, .1, .3])
    low, high = stats.t.interval(.95, 2, change.mean(), stats.sem(change))
    assert figures.change_text(change) == f'{change.mean():+.3f} [{low:+.3f} to {high:+.3f}]'


def test_changes_by_loops():
    "Of each seed, and their mean in the words"
    change = figures.score_changes(FLAT, STEEP, 'local_rank', [1])
    by_hand = [[b.positives.query(q).score.mean() - a.positives.query(q).score.mean() for q in ('local_rank == 0', 'local_rank > 0')] for a, b in zip(FLAT, STEEP)]
    np.testing.assert_allclose(change, by_hand)
    assert f'- local rank 0: {np.mean(by_hand, 0)[0]:+.3f} [' in figures.figure5(FLAT, STEEP).finding


def test_best_is_highest_by_loops():
    for run in (*FLAT, *STEEP):
        best = [own.score.idxmax() == own.iou.idxmax() for _, own in run.positives.groupby('gt')]
        assert figures.best_is_highest(run) == pytest.approx(100 * np.mean(best))


def test_an_interval_with_zero_leaves_it_open():
    change = np.array([0.4, -0.1])
    assert figures.change_text(change, 1).startswith('+0.150 [') and figures.change_text(change, 1).endswith(']' + OPEN)
    assert figures.change_text(np.array([.4, .41]), 1).endswith(HOLDS) and figures.change_text(np.array([.4, .41]), -1).endswith(FAILS)
    assert figures.change_text(np.array([.4]), 1).endswith(OPEN)  # one seed


def test_the_runs_say_which_seeds_and_how_they_compare():
    assert figures.where(FLAT[:1], STEEP[:1], names=['flat', 'steep']).endswith('seeds 0. AP: flat 30.0 (all 3 seeds: 25.0), steep 30.0 (all 3 seeds: 25.0).')
    assert figures.where(FLAT, names=['flat']).endswith('seeds 0, 1, 2. AP: flat 25.0.')
    assert figures.run_list(FLAT[1:]) == '- `flat1`: AP 20.0, 720 positive samples\n- `flat2`: AP 25.0, 720 positive samples'


WITH_RUNS = [number for number, figure in figures.FIGURES.items() if figure.rows]
HOLDS, FAILS, OPEN = ', as in the paper', ', opposite to the paper', ', open'


@pytest.mark.parametrize('number, of, words', [
    (1, (FLAT, FLAT, STEEP), HOLDS), (1, (STEEP, STEEP, FLAT), FAILS), (2, (FLAT,), HOLDS),
    (7, (STEEP,), HOLDS), (5, (FLAT, STEEP), HOLDS), (5, (STEEP, FLAT), FAILS), (8, (FLAT, STEEP), HOLDS), (8, (STEEP, FLAT), FAILS),
    (8, (FLAT, FLAT), OPEN), (9, (FLAT, STEEP), HOLDS), (9, (STEEP, FLAT), FAILS)])
def test_says_what_the_samples_say(number, of, words):
    drawn = figures.FIGURES[number].draw(*of)
    assert words in drawn.finding
    assert not any(w in drawn.finding for w in {HOLDS, FAILS, OPEN} - {words})
    assert ids(drawn) == [t.id for runs in of for t in runs]


def ids(drawn): return re.findall('`(.*?)`', drawn.runs)


def test_figure_2_sees_the_other_order():
    swapped = [dataclasses.replace(t, study=dataclasses.replace(t.study, precision=t.study.precision[[0, 2, 1]])) for t in FLAT]
    assert figures.figure2(swapped).finding.endswith(FAILS + '.')


def test_means_of_figure_4_are_in_its_words():
    drawn = figures.figure4(FLAT)
    kinds = [figures.three_of_each(t.positives) for t in FLAT]
    for name in figures.COLORS: assert '{} {:.2f} and {:.2f}'.format(name, *pd.concat([k.loc[name] for k in kinds])[['iou', 'loss']].mean()) in drawn.finding
    assert '(prime), 360 of each' in drawn.caption
    assert figures.figure4(STEEP).finding.count(HOLDS) == 2  # higher IoUs, lower losses


def test_missing_runs_are_one_line(tmp_path, capsys):
    for number in WITH_RUNS:
        assert figures.draw(number, tmp_path) is None
        said = capsys.readouterr().out
        assert said.count('\n') == 1 and said.startswith(f'Figure {number} needs runs of ')
        for row in figures.FIGURES[number].rows: assert row in said


@pytest.mark.parametrize('number', [0, 10, 4., True, '4', None, [4]])
def test_refuses_what_is_no_figure(number): refused(lambda: figures.draw(number), f'number={number!r} is no figure')


def test_data_is_that_of_the_tables():
    "The data set with the most runs, even if another one has more images"
    many, one = (made_up_runs({'table3/R-R': (30., n), 'table3/H-H': (31., n)}) for n in (3, 1))
    one = one.assign(data_fingerprint='other', data_n_train=10**6, id='other-' + one.id)
    everything = pd.concat([one, many], ignore_index=True)
    own = figures.runs_of_row('table3/R-R', everything)
    cells = tables.select(3, everything)
    assert own.id.to_dict() == {s: f'table3/R-R-s{s}' for s in range(3)} and set(own.id) == set(cells.id[cells.row == 'table3/R-R'])


def test_takes_the_seeds_that_all_rows_have(monkeypatch, tmp_path, capsys):
    "Baseline with seeds 1, 2 and 3, ISR with 1 and 2; of seed 2 of ISR there are no samples"
    baseline = pd.DataFrame({'id': ['b1', 'b2', 'b3'], 'AP': [30., 20., 10.], 'recipe': RECIPE}, [1, 2, 3])
    of = {'table3/R-R': baseline, 'table4/baseline': baseline, 'table4/isr': pd.DataFrame({'id': ['i1', 'i2'], 'AP': [40., 50.], 'recipe': RECIPE}, [1, 2])}
    monkeypatch.setattr(figures, 'read_runs', lambda runs, recipe: None)
    monkeypatch.setattr(figures, 'runs_of_row', lambda row, everything: of[row])
    monkeypatch.setattr(figures.store, 'find', lambda id, runs: tmp_path / id)
    monkeypatch.setattr(figures.store, 'read_record', lambda path: FLAT[0].record | {'seed': int(path.name[1])})
    monkeypatch.setattr(figures, 'read', lambda id, runs: dataclasses.replace((FLAT if id[0] == 'b' else STEEP)[0].study, run=id))
    for id in ('b1', 'b2', 'b3', 'i1'):
        (tmp_path / id).mkdir()
        (tmp_path / id / 'samples.npz').touch()
    drawn = figures.draw(8)
    assert ids(drawn) == ['b1', 'i1'] and 'AP: table4/baseline 30.0 (all 3 seeds: 20.0), table4/isr 40.0 (all 2 seeds: 45.0).' in drawn.runs and drawn.caption.endswith('Mini scale, shapes, 1 seed.')
    assert ids(figures.draw(4)) == ['b1', 'b2', 'b3']
    (tmp_path/'i1/samples.npz').unlink()
    assert figures.draw(8) is None and capsys.readouterr().out.startswith('Figure 8 needs runs of table4/baseline and table4/isr with a seed')


def test_files(tmp_path):
    paths = figures.save(figures.figure4(FLAT), 'fig4', tmp_path / 'new')
    assert [p.name for p in paths] == ['fig4.png', 'fig4.pdf', 'fig4.json']
    png, pdf, words = (p.read_bytes() for p in paths)
    assert png.startswith(b'\x89PNG') and pdf.startswith(b'%PDF')
    assert b'/Type3' not in pdf and b'/FontFile2' in pdf  # TrueType: text stays text
    words = json.loads(words)
    assert [r.split('`')[1] for r in words['runs'][1:]] == ['flat0', 'flat1', 'flat2'] and '360 of each' in words['caption'] and 'Mean IoU and loss' in words['finding']
    assert {p.read_bytes() for p in figures.save(figures.figure4(FLAT), 'fig4', tmp_path / 'again')} == {png, pdf, paths[2].read_bytes()}  # nothing of the day in it


@pytest.mark.parametrize('number', [4, 6])
def test_notebook_without_runs(number, tmp_path):
    (tmp_path / 'runs').mkdir()
    said = log(papermill('paper/figure', tmp_path / 'x.ipynb', number=number, runs=tmp_path / 'runs', out=tmp_path / 'out'))
    if number in WITH_RUNS:
        assert 'Figure 4 needs runs of table3/R-R' in said and not (tmp_path / 'out').exists()
    else: assert {p.suffix for p in (tmp_path / 'out').iterdir()} == {'.png', '.pdf', '.json'}


@pytest.mark.parametrize('number', WITH_RUNS)
def test_from_the_projects_runs(number, tmp_path):
    everything = tables.read_runs(ROOT / 'runs')
    of_row = [figures.runs_of_row(row, everything).id for row in figures.FIGURES[number].rows]
    seeds = set.intersection(*({s for s, id in own.items() if (runs.find(id, ROOT / 'runs') / 'samples.npz').exists()} for own in of_row))
    if not seeds: pytest.skip('runs/ has not all runs of this figure')
    drawn = figures.draw(number, ROOT / 'runs')
    drawn_ids = ids(drawn)
    assert set(drawn_ids) <= {own[s] for own in of_row for s in seeds} and (number == 3 or len(drawn_ids) == len(of_row) * len(seeds))
    assert 'nan' not in drawn.caption + drawn.finding
    for path in figures.save(drawn, 'fig', tmp_path): assert path.stat().st_size > 200
