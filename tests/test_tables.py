"pisa.lab.tables and claims from made-up run folders: means, paired intervals, missing runs, other data, files"
import dataclasses, json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip('mmdet')
from refusal import refused
from pisa.lab import claims, experiments, paper, protocol, runs as store, tables
from pisa.lab.files import write_json
from pisa.lab.rows import TABLES, row_experiment
from notebooks import log, papermill

ROOT = Path(__file__).resolve().parents[1]


def run(folder, row, seed, ap, scale='mini', data='shapes-1', gpu=None, threads=1, precision='auto', **metrics):
    "A complete run, as a training leaves it"
    exp = row_experiment(row, scale=scale, seed=seed, precision=precision)
    record = dict(schema=1, id=exp.id(data), **dataclasses.asdict(exp), steps=1000, seconds=720.,
                  data=dict(name='shapes', fingerprint=data, classes=['disk'], n_train=2000, n_val=500, area_limits=[1, 2], note=f'data {data}'),
                  git=dict(dirty=False), versions={}, resumed=0, machine=dict(host='h', cpu='c', cores=2, processes=1, threads=threads, gpu=gpu))
    path = folder/record['id']
    path.mkdir(parents=True)
    write_json(path/'run.json', record)
    write_json(path/'metrics.json', dict(AP=ap, AP50=ap + 20, AP75=ap + 5) | metrics)
    return record['id']


PRIME = 'table3/C-R', 'table3/R-R'
AP = {'table3/R-R': (40., 42., 41.), 'table3/C-R': (44., 45.5, 45.), 'table3/R-H*': (41., 42., 42.)}


@pytest.fixture
def folder(tmp_path):
    "Three rows of three seeds"
    for row, aps in AP.items():
        for seed, ap in enumerate(aps): run(tmp_path/'runs', row, seed, ap)
    return tmp_path/'runs'


def test_means_and_differences(folder):
    df = tables.table(3, tables.read_runs(folder))
    rows = dict(zip([r.name for r in TABLES[df.attrs['number']].rows], df['mini'].to_dict('records')))
    assert rows['table3/C-R']['AP'] == pytest.approx(np.mean(AP['table3/C-R']))
    assert rows['table3/C-R']['ΔAP'] == pytest.approx(np.mean(AP['table3/C-R']) - np.mean(AP['table3/R-R']))
    assert [r['seeds'] for r in rows.values()] == [3, 0, 3, 0, 0, 3, 0]
    assert np.isnan(rows['table3/H-H']['AP']) and np.isnan(rows['table3/R-R']['ΔAP'])  # not run; the baseline itself
    assert df['published'].AP.tolist() == paper.published('table3').AP.tolist()


def test_intervals_are_students_t_of_these_rows_alone(folder):
    "A noisy third row changes nothing"
    for seed, ap in enumerate((10., 50., 90.)): run(folder, 'table3/H-H', seed, ap)
    df = tables.table(3, tables.read_runs(folder))['mini'].iloc[2]
    low, high = stats.t.interval(.95, 2, np.mean(AP['table3/C-R']), stats.sem(AP['table3/C-R']))
    assert df['±AP'] == pytest.approx((high - low)/2)
    ref = stats.ttest_rel(AP['table3/C-R'], AP['table3/R-R']).confidence_interval()
    assert (df['ΔAP'] - df['±ΔAP'], df['ΔAP'] + df['±ΔAP']) == (pytest.approx(ref.low), pytest.approx(ref.high))


def test_only_seeds_that_both_rows_have_are_compared(folder):
    run(folder, 'table3/R-R', 7, 99.)
    run(folder, 'table3/C-R', 8, 10.)
    df = tables.table(3, tables.read_runs(folder))['mini']
    assert df['ΔAP'].iloc[2] == pytest.approx(np.mean(AP['table3/C-R']) - np.mean(AP['table3/R-R']))
    assert df.AP.iloc[0] == pytest.approx((sum(AP['table3/R-R']) + 99)/4) and df.seeds.tolist()[:3] == [4, 0, 4]


def test_one_seed_has_no_interval(tmp_path):
    for row, ap in zip(PRIME, (42., 40.)): run(tmp_path, row, 0, ap)
    assert tables.shown(tables.table(3, tables.read_runs(tmp_path)))['ours, mini scale', 'AP'].tolist()[:3] == ['40.0', '', '42.0\n+2.0']


def test_a_cell_has_mean_difference_and_intervals(tmp_path):
    for seed in range(3):
        for row, ap in (('R-R', 40 + seed), ('C-R', 43 + seed + .1*(seed - 1)), ('H-H', 38 + 3*seed)): run(tmp_path, f'table3/{row}', seed, ap)
    cells = tables.shown(tables.table(3, tables.read_runs(tmp_path)))['ours, mini scale', 'AP']
    assert cells.iloc[2] == '44.0 ± 2.7\n+3.0 ± 0.2' and cells.iloc[3] == '41.0 ± 7.5\n0.0 ± 5.0'


def test_pairs_are_named_where_they_are_fewer_than_seeds(folder):
    for seed in (7, 8): run(folder, 'table3/C-R', seed, 40.)
    cells = tables.shown(tables.table(3, tables.read_runs(folder)))['ours, mini scale', 'seeds']
    assert cells.tolist()[:3] == ['3', 'not run', '5\n3 pairs']


def test_a_row_says_that_some_diverged(tmp_path):
    for seed in range(3):
        for row, ap in (('R-R', 40 + seed), ('C-R', 43 + seed + .1*(seed - 1))): run(tmp_path, f'table3/{row}', seed, ap)
    path = tmp_path/run(tmp_path, 'table3/C-R', 3, 30.)
    (path/'metrics.json').unlink()
    (path/'error.txt').write_text('FloatingPointError: step 7: loss is nan\n')
    cells = tables.shown(tables.table(3, tables.read_runs(tmp_path)))['ours, mini scale']
    assert cells.seeds.iloc[2] == '3\nsome diverged' and cells.AP.iloc[2] == '44.0 ± 2.7\n+3.0 ± 0.2'


def test_torchvisions_runs_are_in_no_table(folder):
    "Here they are more than the others, and of another precision"
    for seed in range(12):
        id = run(folder, 'table3/R-R', 20 + seed, 50., precision='float32')
        record = json.loads((folder/id/'run.json').read_text()) | dict(detector='torchvision_fcos')
        new = experiments.Experiment(**{f.name: record[f.name] for f in dataclasses.fields(experiments.Experiment)}).id('shapes-1')
        (folder/id).rename(folder/new)
        write_json(folder/new/'run.json', record | dict(id=new))
    runs = tables.read_runs(folder)
    assert len(runs) == 9 and len(tables.select(3, runs)) == 9


def test_a_training_that_diverged(tmp_path, monkeypatch):
    "Of a sweep: its error says so; of the protocol: its id is in diverged.txt"
    shown = lambda: (tables.shown(tables.table(5, tables.read_runs(tmp_path)))['ours, mini scale', ''] == 'diverged').sum()
    path = tmp_path/run(tmp_path, 'table5/k2-b0', 1, 30.)
    (path/'metrics.json').unlink()
    assert shown() == 0  # it may be running
    (path/'error.txt').write_text('FloatingPointError: step 7: loss is nan\n')
    assert shown() == 1
    (path/'error.txt').unlink()
    (tmp_path/'records').mkdir()
    exp = dataclasses.replace(row_experiment('table5/k2-b0', scale='mini'), seed=protocol.FIRST)
    (tmp_path/'records/diverged.txt').write_text(exp.id(protocol.FINGERPRINTS['shapes']) + '\n')
    assert shown() == 1


def test_a_table_is_of_one_data_set(folder):
    run(folder, 'table3/R-R', 0, 99., data='shapes-tiny')
    runs = tables.read_runs(folder)
    assert tables.table(3, runs)['mini', 'AP'].max() < 50
    assert len(tables.select(3, runs)) == 9


def test_paper_scale_has_its_own_columns(folder):
    run(folder, 'table3/R-R', 0, 36.4, scale='paper', data='coco', gpu='H100')
    run(folder, 'table3/C-R', 0, 37.7, scale='paper', data='coco', gpu='H100')
    runs = tables.read_runs(folder)
    df = tables.table(3, runs)
    assert df['paper'].seeds.tolist() == [1, 0, 1, 0, 0, 0, 0] and df['mini'].seeds.sum() == 9
    assert df['paper', 'ΔAP'].iloc[2] == pytest.approx(1.3)
    assert 'paper scale*: data coco' in tables.caption(3, runs)


def test_runs_with_other_settings_are_in_no_row(folder):
    exp = row_experiment('table3/R-R', scale='mini', seed=5, overrides='train_cfg.max_epochs=1')
    path = folder/exp.id('shapes-1')
    record = json.loads(next(folder.glob('*/run.json')).read_text())
    write_json(path/'run.json', record | dataclasses.asdict(exp) | dict(id=path.name))
    write_json(path/'metrics.json', dict(AP=99.))
    runs = tables.read_runs(folder)
    assert path.name in set(runs.id) and path.name not in set(tables.select(3, runs).id)


def test_rows_that_two_tables_share_are_the_same_runs(folder):
    runs = tables.read_runs(folder)
    assert set(tables.select(4, runs).id) < set(tables.select(3, runs).id)
    assert tables.select(7, runs).row.tolist() == ['table4/baseline']*3


def test_time_is_compared_on_the_same_machine_alone(tmp_path):
    base, pisa = 'table1/faster_rcnn-r50-baseline', 'table1/faster_rcnn-r50-pisa'
    for row, seed, threads in ((base, 0, 1), (pisa, 0, 1), (base, 1, 1), (pisa, 1, 2)): run(tmp_path, row, seed, 40., scale='paper', threads=threads)
    for id, seconds in zip(tables.read_runs(tmp_path).sort_values(['method', 'seed']).id, (100., 100., 130., 10.)):
        write_json(tmp_path/id/'run.json', json.loads((tmp_path/id/'run.json').read_text()) | dict(seconds=seconds))
    runs = tables.read_runs(tmp_path)
    df = tables.table(1, runs)
    assert df['paper', 'time_ratio'].dropna().tolist() == [pytest.approx(1.3)]
    assert df['published', 'time_ratio'].iloc[1] == pytest.approx(.594/.585)


def test_time_at_mini_scale_is_the_benchs(folder):
    assert 'ours, on a CPU' not in tables.shown(tables.table(1, tables.read_runs(folder)))
    row = lambda method, ratio: dict(method=method, step_ratio=ratio, low=ratio - .02, high=ratio + .01)
    (folder/'records/bench').mkdir(parents=True)
    write_json(folder/'records/bench/step.json', {'tables': [{'title': f'{d}: a step', 'rows': [row('baseline', 1.), row('pisa', r), row('mmdet', 9.)]}
                                                             for d, r in (('faster_rcnn', 1.01), ('ssd300', 1.02), ('unheard_of', 7.))]})
    runs = tables.read_runs(folder)
    shown = tables.shown(tables.table(1, runs))['ours, on a CPU', 'step']
    assert shown[shown != ''].to_dict() == {('Faster R-CNN', 'ResNet-50', 'PISA'): '×1.010\n0.990–1.020', ('SSD', 'VGG16', 'PISA'): '×1.020\n1.000–1.030'}
    assert 'train_time' not in tables.table(1, runs)['mini']


@pytest.mark.parametrize('number', TABLES)
def test_without_a_run(tmp_path, number):
    "Nothing of the paper's stands where our numbers would"
    (tmp_path/'runs').mkdir()
    runs = tables.read_runs(tmp_path/'runs')
    df = tables.table(number, runs)
    assert (df['mini'].seeds == 0).all() and df[['mini', 'paper']].drop(columns=[('mini', 'seeds'), ('paper', 'seeds'), ('mini', 'runs'), ('paper', 'runs')]).isna().all(axis=None)
    text = tables.shown(df)
    assert set(text['ours, mini scale', '']) == {'not run'} and 'ours, paper scale' not in text
    md, csv, tex = tables.write(number, runs, tmp_path)
    assert 'no run' in md.read_text() and 'not run' in tex.read_text()


def test_released_numbers_stand_beside_their_rows(folder):
    df = tables.table(1, tables.read_runs(folder))
    rows = dict(zip([r.name for r in TABLES[df.attrs['number']].rows], df['released'].to_dict('records')))
    assert rows['table1/faster_rcnn-r50-pisa'] == dict(AP=38.4, ΔAP=pytest.approx(1.)) and rows['table1/faster_rcnn-r50-baseline']['AP'] == 37.4
    assert np.isnan(rows['table1/mask_rcnn-x101_32x4d-pisa']['AP'])  # none was released
    assert 'released' not in tables.table(3, tables.read_runs(folder))


def test_files(folder, tmp_path):
    runs = tables.read_runs(folder)
    md, csv, tex = tables.write(3, runs, tmp_path/'out')
    read = pd.read_csv(csv)
    assert read['mini AP'].dropna().round(3).tolist() == pytest.approx([np.mean(AP[r]) for r in ('table3/R-R', 'table3/C-R', 'table3/R-H*')], abs=1e-3)
    lines = md.read_text().splitlines()
    assert len({line.count('|') for line in lines[:9]}) == 1  # seven rows below two lines of heading, all as wide
    assert all(f'`{id}`' in md.read_text() for id in runs.id)
    body = tex.read_text().split(r'\midrule')[1].split(r'\bottomrule')[0].strip().splitlines()
    assert len(body) == 7 and len({line.count('&') for line in body}) == 1
    assert tex.read_text().count('{') == tex.read_text().count('}') and not set(tex.read_text()) & set('±Δ✓γβ×')
    before = [f.read_bytes() for f in (md, csv, tex)]
    assert [f.read_bytes() for f in tables.write(3, tables.read_runs(folder), tmp_path/'out')] == before


def test_published_differences_of_the_claims():
    "Those that Sections 5.2 and 5.3 (v1) say in words; all are on the claimed side"
    published = {c.expects.split(':')[0].split(' †')[0] if n == 4 else c.expects: c.published for n, own in claims.CLAIMS.items() for c in own}
    said = {'negatives at random: prime positives (C/R) are better than hard ones (H*/R)': 1.7,
            'negatives mined: prime positives (C/H*) are better than random ones (R/H*)': 1.1, 'negatives mined: prime positives (C/H*) are better than hard ones (H*/H*)': 1.3,
            'ISR alone raises AP': .7, 'CARL alone raises AP': .8, 'CARL is better with the gradient into the scores than without': .6,
            'mining negatives helps (R/H* above R/R)': .6, 'ranking eight images together is a little better than each apart': .3}
    assert {k: published[k] for k in said} == pytest.approx(said)
    assert all(c.published > (0 if c.claim == 'above' else -.5) for own in claims.CLAIMS.values() for c in own)


def test_claims_are_judged_like_the_protocol(monkeypatch):
    "The verdict on Table 4's ISR from records of all its seeds, and from too few"
    c = claims.CLAIMS[4][0]
    (a, b), = c.pairs.values()
    def records(seeds, gain):
        rows = [dict(vars(e), seed=protocol.FIRST + s, recipe=5, machine_processes=1, machine_threads=1, git_dirty=False, data_fingerprint=protocol.FINGERPRINTS['shapes'],
                     AP=40. + s + gain*(e == a) + .1*(s % 2)*(e == a), AP50=60., AP75=50., AP_VOC=60., id=f'{i}') for s in range(seeds) for i, e in enumerate((a, b))]
        return pd.DataFrame(rows)
    for seeds, gain, verdict in ((6, 2., 'holds'), (6, -2., 'fails'), (6, -.05, 'open'), (5, 2., 'unfinished')):
        monkeypatch.setattr(protocol.store, 'load', lambda *args, **more: records(seeds, gain))
        row = claims.judged_claims().set_index('expects').loc[c.expects]
        assert row.verdict == verdict and row.published == pytest.approx(.7) and row['size'] == ('within 3×' if verdict == 'holds' else 'beyond 3×' if verdict == 'fails' else '')


def test_a_run_that_no_recipe_gives_is_not_counted(folder):
    old = folder/'faster_rcnn-baseline-shapes-s9-00000000'
    old.mkdir()
    record = json.loads(next(folder.glob('*/run.json')).read_text())
    write_json(old/'run.json', record | dict(id=old.name))
    write_json(old/'metrics.json', dict(AP=99.))
    assert len(store.load(folder)) == 10 and len(tables.read_runs(folder)) == 9


def of_recipe_4(folder, row, seed, ap, amx, where='records'):
    "A record of the time when the processor decided on the precision"
    new = run(folder, row, seed, ap)
    record = json.loads((folder/new/'run.json').read_text())
    exp = dataclasses.replace(row_experiment(row, scale='mini', seed=seed), precision='')
    record |= dict(id=exp.id('shapes-1', 4), machine=record['machine'] | dict(amx=amx))
    del record['precision']
    (folder/where).mkdir(exist_ok=True)
    (folder/new).rename(folder/where/record['id'])
    write_json(folder/where/record['id']/'run.json', record)
    return record['id']


def test_runs_of_two_recipes_or_precisions_are_never_mixed(tmp_path):
    "Each table has the recipe and the precision that most of its own runs have"
    old = [of_recipe_4(tmp_path, row, seed, ap, amx=True) for row in PRIME for seed, ap in ((0, 30.), (1, 31.), (2, 32.))]
    of_recipe_4(tmp_path, 'table3/R-R', 3, 99., amx=False)  # trained in float32 under a name that says nothing of it
    new = [run(tmp_path, PRIME[0], seed, 50.) for seed in range(5)]
    other = [run(tmp_path, 'table4/carl', seed, 50.) for seed in range(4)]  # in Table 4 the baseline of Table 3 has fewer
    runs = tables.read_runs(tmp_path)
    assert set(tables.select(3, runs).id) == set(old) and set(tables.select(4, runs).id) == {*other, *new}
    said = tables.caption(3, runs)
    assert 'recipe 4, bfloat16; 6 runs. Not shown: 6 runs, 5 of them your own, on other data, of another recipe' in said
    assert 'recipe 5, bfloat16; 9 runs, 9 of them your own. Not shown: 7 runs on' in tables.caption(4, runs)
    missing = tables.table(4, runs).attrs['missing']['mini']
    assert missing[0] == 'not comparable' and missing[1] == 'not run'  # the baseline has runs of recipe 4; ISR alone has none
    runs = tables.read_runs(tmp_path, recipe=5)
    assert set(tables.select(3, runs).id) == set(new)
    assert '5 runs, 5 of them your own' in tables.caption(3, runs) and f'`{new[0]}` (your own)' in tables.run_ids(3, runs)
    refused(lambda: tables.read_runs(tmp_path, recipe=3), 'recipe=3: there is no run of it. Choose from: 4, 5')
    assert set(tables.select(3, tables.read_runs(tmp_path, own=False)).id) == set(old)
    run(tmp_path, PRIME[1], 0, 50.)
    assert set(tables.select(3, tables.read_runs(tmp_path)).recipe) == {5}  # as many runs: the newest


def test_runs_of_the_rarer_precision_are_not_counted(tmp_path):
    for seed in (0, 1):
        for row in PRIME: run(tmp_path, row, seed, 40., precision='float32')
    run(tmp_path, PRIME[0], 2, 99.)
    cells = tables.select(3, tables.read_runs(tmp_path))
    assert len(cells) == 4 and set(cells.precision) == {'float32'}


def test_an_own_run_counts_in_place_of_a_record_of_the_same_training(folder):
    id = run(folder, 'table3/H-H', 0, 41.)
    store.add_record(id, folder)
    write_json(folder/id/'metrics.json', dict(AP=43.))
    of = lambda: store.load(folder).set_index('id').loc[id, ['AP', 'source']].tolist()
    assert of() == [43., 'own'] and len(tables.read_runs(folder)) == 10
    store.delete(id, folder)
    assert of() == [41., 'record']


def test_unknown_table(tmp_path):
    refused(lambda: tables.table(8, tables.read_runs(tmp_path)), 'Choose from: 1, 2, 3')


@pytest.mark.parametrize('number, name', [('3', 'table3'), ('text', 'carl_gradient')])
def test_notebook_writes_where_it_is_told(folder, tmp_path, number, name):
    "papermill runs the cell that nbdev_test leaves out"
    log(papermill('paper/table', tmp_path/'x.ipynb', number=number, runs=folder, out=tmp_path/'out'))
    assert sorted(f.name for f in (tmp_path/'out').iterdir()) == [f'{name}.{kind}' for kind in ('csv', 'md', 'tex')]
