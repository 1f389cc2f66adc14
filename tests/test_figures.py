"Figures: what they compute, by loops; what they say, on samples whose answer is known; what they do without runs"
import dataclasses
import json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest

pytest.importorskip('mmdet')
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from pisa.lab import figures, runs
from pisa.lab.samples import FALSE_POSITIVES, Study
from notebooks import log, papermill

ROOT = Path(__file__).resolve().parents[1]


def positives(rng, images=12, objects=3, each=6, classes=2):
    "Rows as `with_ranks` has them, by chance"
    gt = np.arange(images * objects).repeat(each)
    table = pd.DataFrame({'image': gt // objects, 'gt': gt, 'label': gt % classes, 'iou': rng.rand(len(gt)).astype(np.float32), 'score': rng.rand(len(gt))})
    table['loss'] = -np.log(table.score)
    table['local_rank'] = table.groupby('gt').iou.rank(ascending=False).astype(int) - 1
    for by, name in (('label', 'rank'), ('image', 'image_rank')):
        order = table.sort_values(['local_rank', 'iou'], ascending=[True, False])
        table[name] = order.groupby(by).cumcount()
    return table


def trained(name, score, images=40, seed=0):
    "Runs of two seeds whose scores are a function of the IoU (and of chance), 0.5 to 1"
    return [of_seed(f'{name}{s}', score, images, s) for s in (seed, seed + 1)]


def of_seed(name, score, images, seed):
    rng = np.random.RandomState(seed)
    pos = positives(rng, images)
    iou = 0.5 + pos.iou / 2
    p = np.clip(score(iou.to_numpy(), pos.local_rank.to_numpy(), rng.rand(len(pos))), 0.01, 0.99)
    objects = pd.DataFrame({'image': np.arange(images * 3) // 3, 'label': np.arange(images * 3) % 2})
    objects['x1'], objects['y1'] = 44. * (objects.index % 3), 10.
    objects['x2'], objects['y2'] = objects.x1 + 30, objects.y1 + 30
    own = objects.loc[pos['gt']].reset_index(drop=True)  # a box cut off at the right to the share `iou`
    samples = pos.assign(iou=iou, iou_before=iou, score=p, object_score=p, loss=-np.log(p), x1=own.x1, y1=own.y1, x2=own.x1 + 30 * iou, y2=own.y2)
    found = samples.loc[samples.groupby('gt').score.idxmax()]
    curve = np.linspace(1, 0, 101)
    study = Study(name, samples.drop(columns=['rank', 'local_rank', 'image_rank']), objects, found.assign(sample=found.index), images, 0,
                  precision=np.stack([np.tile(curve ** k, (10, 1)) for k in (2, 0.5, 1)]), raised_by=np.array([0, 5., 0.5]), loss_sum=np.array([20., 18, 18]))
    return figures.Trained(dict(detector='faster_rcnn', backbone='none', scale='mini', seed=seed, recipe=0, precision='float32', data=dict(name='shapes', note='made up')), study, {0: 30., 1: 20.})


FLAT = trained('flat', lambda iou, rank, chance: 0.4 + 0.2 * chance)
STEEP = trained('steep', lambda iou, rank, chance: 0.1 + 1.6 * (iou - 0.5) - 0.1 * rank + 0.2 * chance)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def test_three_of_each_by_loops():
    pos = positives(np.random.RandomState(1))
    kinds = figures.three_of_each(pos, 3)
    for image, own in pos.groupby('image'):
        rows = own.to_dict('index')
        assert set(kinds['hard'].query('image == @image').index) == set(sorted(rows, key=lambda i: -rows[i]['loss'])[:3])
        best = sorted(rows, key=lambda i: (rows[i]['local_rank'], -rows[i]['iou']))[:3]
        assert set(kinds['prime'].query('image == @image').index) == set(best)
        assert len({rows[i]['gt'] for i in best}) == 3  # the best of three objects
        assert kinds['random'].query('image == @image').index.isin(own.index).sum() == 3


def test_isr_weights_by_the_equations():
    pos = positives(np.random.RandomState(2), images=16)
    prime = figures.selected(pos, budget=7, batch=8)['prime']
    assert prime.groupby('image').size().eq(7).all()
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
    hard = figures.selected(pos, budget=5)['hard']
    for image, own in pos.groupby('image'):
        assert set(hard[hard.image == image].index) == set(own.nlargest(5, 'loss').index)


def test_group_means_and_their_intervals():
    rng = np.random.RandomState(4)
    image, place = rng.randint(0, 50, 4000), rng.randint(0, 3, 4000)
    value = rng.randn(50)[image] + 0.1 * rng.randn(4000)  # images differ, samples of one image hardly
    often = figures.resampled(50)
    means = figures.group_means(image, np.c_[place[:, None] == np.arange(4), place < 2], value, often)
    np.testing.assert_allclose(means[0, :3], [value[place == b].mean() for b in range(3)])
    assert np.isnan(means[:, 3]).all() and means[0, 4] == pytest.approx(value[place < 2].mean())  # an empty one, and one that overlaps others
    again = np.concatenate([np.flatnonzero((image == i) & (place == 1)) for i in range(50) for _ in range(often[7, i])])
    assert means[7, 1] == pytest.approx(value[again].mean())
    by_image = pd.Series(value).groupby(image).mean().std() / 50 ** 0.5
    assert means[1:, 0].std() == pytest.approx(by_image, rel=0.25)  # not that of 4000 samples that know nothing of each other


def test_changes_by_loops():
    "Of each seed, and their mean in the words"
    change = figures.score_changes(FLAT, STEEP, lambda pos: np.c_[pos.local_rank == 0, pos.local_rank > 0])
    by_hand = [[b.positives.query(q).score.mean() - a.positives.query(q).score.mean() for q in ('local_rank == 0', 'local_rank > 0')] for a, b in zip(FLAT, STEEP)]
    np.testing.assert_allclose(change[:, 0], by_hand)
    assert f'of local rank 0 changes by {np.mean(by_hand, 0)[0]:+.3f} (' in figures.figure5(FLAT, STEEP).finding


def test_recall_by_loops():
    run, iou = STEEP[0], 0.75
    curves = figures.recalls(run, iou, draws=3)
    often = figures.resampled(run.study.images, 3)
    found = run.study.detections.sort_values('score', ascending=False)
    good = (found['sample'].map(run.study.samples.iou) >= iou).tolist()  # one detection of each object, and objects lie apart
    for curve, weight in zip(curves, often):
        objects = sum(weight[i] for i in run.study.objects.image)
        for allowed, recall in zip(FALSE_POSITIVES, curve):
            true = false = 0
            for image, hit in zip(found.image, good):
                for _ in range(weight[image]):
                    if not hit and false + 1 > allowed * run.study.images: break
                    true, false = true + hit, false + (not hit)
                else: continue
                break
            assert recall == pytest.approx(100 * true / objects)


def test_best_is_highest_by_loops():
    for run in (*FLAT, *STEEP):
        best = [own.score.idxmax() == own.iou.idxmax() for _, own in run.positives.groupby('gt')]
        assert figures.best_is_highest(run)[0, 0] == pytest.approx(100 * np.mean(best))


def test_seeds_that_differ_leave_it_open():
    change = np.array([[0.4, 0.39, 0.41], [-0.1, -0.11, -0.09]])
    assert figures.said(change, 1).startswith('+0.150 (') and figures.said(change, 1).endswith('; by seed +0.400, -0.100), which is undecided, since the seeds differ in sign')
    assert figures.said(abs(change), 1).endswith(AGREES) and figures.said(abs(change), -1).endswith(NOT)


def test_the_caption_says_which_seeds_and_how_they_compare():
    caption = figures.where(FLAT[:1], STEEP[:1])
    assert 'seed 0 alone' in caption and caption.endswith('AP (%): `flat0` 30.0 (mean of all 2 seeds 25.0); `steep0` 30.0 (mean of all 2 seeds 25.0).')
    assert 'seeds 0, 1' in figures.where(FLAT) and '`flat0` 30.0, `flat1` 20.0 (mean of all 2 seeds 25.0)' in figures.where(FLAT)


AGREES, NOT, OPEN = 'as the paper says', 'which contradicts the paper', 'which is undecided'


@pytest.mark.parametrize('number, of, words', [
    (1, (FLAT, FLAT, STEEP), AGREES), (1, (STEEP, STEEP, FLAT), NOT), (2, (FLAT,), AGREES),
    (7, (STEEP,), AGREES), (5, (FLAT, STEEP), AGREES), (5, (STEEP, FLAT), NOT), (8, (FLAT, STEEP), AGREES), (8, (STEEP, FLAT), NOT),
    (8, (FLAT, FLAT), OPEN), (9, (FLAT, STEEP), AGREES), (9, (STEEP, FLAT), NOT)])
def test_says_what_the_samples_say(number, of, words):
    drawn = figures.FIGURES[number](*of)
    assert words in drawn.finding
    assert not any(w in drawn.finding for w in {AGREES, NOT, OPEN} - {words})
    assert drawn.runs == [t.id for runs in of for t in runs] and all(f'`{id}`' in drawn.caption for id in drawn.runs)


def test_figure_2_sees_the_other_order():
    swapped = [dataclasses.replace(t, study=dataclasses.replace(t.study, precision=t.study.precision[[0, 2, 1]])) for t in FLAT]
    assert 'at 0 of 10 IoU thresholds, which contradicts the paper' in figures.figure2(swapped).finding


def test_means_of_figure_4_are_in_its_words():
    drawn = figures.figure4(FLAT)
    kinds = [figures.three_of_each(t.positives) for t in FLAT]
    for name in kinds[0]: assert '{} {:.2f} and {:.2f}'.format(name, *pd.concat([k[name] for k in kinds])[['iou', 'loss']].mean()) in drawn.finding
    assert '240 prime' in drawn.caption
    assert 'Prime samples have higher IoUs and lower losses' in figures.figure4(STEEP).finding


def test_missing_runs_are_one_line(tmp_path, capsys):
    for number, rows in figures.NEEDS.items():
        if not rows: continue
        assert figures.draw(number, tmp_path) is None
        said = capsys.readouterr().out
        assert said.count('\n') == 1 and said.startswith(f'Figure {number} needs ')
        for row in rows: assert f'a run of {row} with seed 1' in said and f'-p experiment "{row}"' in said
        assert f"figures.prepare(runs='{tmp_path}')" in said


def test_takes_the_seeds_that_all_rows_have(monkeypatch, tmp_path, capsys):
    "Baseline with seeds 1, 2 and 3, ISR with 1 and 2; of seed 2 of ISR there are no samples"
    of = {'table3/R-R': {1: 'b1', 2: 'b2', 3: 'b3'}, 'table4/isr': {1: 'i1', 2: 'i2'}}
    aps = {'b1': 30., 'b2': 20., 'b3': 10., 'i1': 40., 'i2': 50.}
    monkeypatch.setattr(figures, 'runs_of_row', lambda row, everything: of[row])
    monkeypatch.setattr(figures.store, 'load', lambda runs: pd.DataFrame({'id': aps.keys(), 'AP': aps.values(), 'recipe': 5, 'scale': 'mini', 'precision': 'bfloat16'}))
    monkeypatch.setattr(figures.store, 'find', lambda id, runs: tmp_path / id)
    monkeypatch.setattr(figures.store, 'read_record', lambda path: FLAT[0].record | {'seed': int(path.name[1])})
    monkeypatch.setattr(figures, 'read', lambda id, runs: dataclasses.replace((FLAT if id[0] == 'b' else STEEP)[0].study, run=id))
    for id in ('b1', 'b2', 'b3', 'i1'):
        (tmp_path / id).mkdir()
        (tmp_path / id / 'samples.npz').touch()
    drawn = figures.draw(8)
    assert drawn.runs == ['b1', 'i1'] and '`b1` 30.0 (mean of all 3 seeds 20.0); `i1` 40.0 (mean of all 2 seeds 45.0)' in drawn.caption
    assert figures.draw(4).runs == ['b1', 'b2', 'b3'] and figures.draw(4, seed=2).runs == ['b2']
    assert figures.draw(8, seed=2) is None and capsys.readouterr().out.startswith('Figure 8 needs samples.npz of i2: python -c')
    assert figures.draw(8, seed=3) is None and capsys.readouterr().out.startswith('Figure 8 needs a run of table4/isr with seed 3: papermill')


def test_the_line_of_the_projects_own_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('PISA_ROOT', str(tmp_path))
    for none in ('', None): assert figures.draw(4, none) is None
    assert capsys.readouterr().out.count('-p seed 1 && python -c "from pisa.lab import figures; figures.prepare()"\n') == 2


def test_files(tmp_path):
    paths = figures.save(figures.figure4(FLAT), 'fig4', tmp_path / 'new')
    assert [p.name for p in paths] == ['fig4.png', 'fig4.pdf', 'fig4.json']
    png, pdf, words = (p.read_bytes() for p in paths)
    assert png.startswith(b'\x89PNG') and pdf.startswith(b'%PDF')
    assert b'/Type3' not in pdf and b'/FontFile2' in pdf  # TrueType: text stays text
    words = json.loads(words)
    assert words['runs'] == ['flat0', 'flat1'] and words['parameters']['of_each_image'] == 3
    assert {p.read_bytes() for p in figures.save(figures.figure4(FLAT), 'fig4', tmp_path / 'again')} == {png, pdf, paths[2].read_bytes()}  # nothing of the day in it


@pytest.mark.parametrize('number', [4, 6])
def test_notebook_without_runs(number, tmp_path):
    (tmp_path / 'runs').mkdir()
    said = log(papermill('paper/figure', tmp_path / 'x.ipynb', number=number, runs=tmp_path / 'runs', out=tmp_path / 'out'))
    if figures.NEEDS[number]:
        assert 'Figure 4 needs a run of table3/R-R with seed 1' in said and not (tmp_path / 'out').exists()
    else: assert {p.suffix for p in (tmp_path / 'out').iterdir()} == {'.png', '.pdf', '.json'}


@pytest.mark.parametrize('number', [n for n, rows in figures.NEEDS.items() if rows])
def test_from_the_projects_runs(number, tmp_path):
    everything = runs.of_one_recipe(runs.load(ROOT / 'runs'))
    ids = [figures.runs_of_row(row, everything) for row in figures.NEEDS[number]]
    seeds = set.intersection(*({s for s, id in own.items() if (runs.find(id, ROOT / 'runs') / 'samples.npz').exists()} for own in ids))
    if not seeds: pytest.skip('runs/ has not all runs of this figure')
    drawn = figures.draw(number, ROOT / 'runs')
    assert set(drawn.runs) <= {own[s] for own in ids for s in seeds} and (number == 3 or len(drawn.runs) == len(ids) * len(seeds))
    assert 'nan' not in drawn.caption + drawn.finding
    for path in figures.save(drawn, 'fig', tmp_path): assert path.stat().st_size > 200
