"pisa.tables from made-up run folders: means, paired intervals, verdicts, missing runs, other data, files"
import dataclasses, json, subprocess, sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip('mmdet')
from refusal import refused
from pisa import paper, tables
from pisa.core import write_json
from pisa.experiments import row_experiment

ROOT = Path(__file__).resolve().parents[1]


def run(folder, row, seed, ap, scale='mini', data='shapes-1', draws=None, gpu=None, threads=1, **metrics):
    "A complete run, as a training leaves it"
    exp = row_experiment(row, scale=scale, seed=seed)
    record = dict(schema=1, id=exp.id(data), **dataclasses.asdict(exp), steps=1000, seconds=720.,
                  data=dict(name='shapes', fingerprint=data, classes=['disk'], n_train=2000, n_val=500, area_limits=[1, 2], note=f'data {data}'),
                  git={}, versions={}, resumed=0, machine=dict(host='h', cpu='c', cores=2, processes=1, threads=threads, gpu=gpu))
    path = folder/record['id']
    path.mkdir(parents=True)
    write_json(path/'run.json', record)
    metrics = dict(AP=ap, AP50=ap + 20, AP75=ap + 5) | metrics
    if draws is not None:
        np.savez_compressed(path/'bootstrap.npz', **{k: (v + np.append(0, draws)).astype(np.float32) for k, v in metrics.items() if k in ('AP', 'AP50', 'AP75', 'AP_VOC')})
    write_json(path/'metrics.json', metrics)
    return record['id']


AP = {'table3/R-R': (40., 42., 41.), 'table3/C-R': (44., 45.5, 45.), 'table3/R-H*': (41., 42., 42.)}


@pytest.fixture
def folder(tmp_path):
    "Three rows of three seeds; images add noise that is common to all runs, and some that is not"
    rng = np.random.default_rng(0)
    common = rng.normal(0, 2, 1000)
    for row, aps in AP.items():
        for seed, ap in enumerate(aps): run(tmp_path/'runs', row, seed, ap, draws=common + rng.normal(0, .3, 1000))
    return tmp_path/'runs'


def test_means_and_differences(folder):
    df = tables.table(3, tables.read(folder))
    rows = dict(zip(df.attrs['rows'], df['mini'].to_dict('records')))
    assert rows['table3/C-R']['AP'] == pytest.approx(np.mean(AP['table3/C-R']))
    assert rows['table3/C-R']['ΔAP'] == pytest.approx(np.mean(AP['table3/C-R']) - np.mean(AP['table3/R-R']))
    assert [r['seeds'] for r in rows.values()] == [3, 0, 3, 0, 0, 3, 0]
    assert np.isnan(rows['table3/H-H']['AP']) and np.isnan(rows['table3/R-R']['ΔAP'])  # not run; the baseline itself
    assert df['published'].AP.tolist() == paper.published('table3').AP.tolist()


def test_interval_of_a_mean_is_the_pooled_t_interval(folder):
    part = tables.select(3, tables.read(folder))
    sd, df = part.noise('AP', paired=False)
    groups = [np.array(v) for v in AP.values()]
    pooled = np.sqrt(sum(((g - g.mean())**2).sum() for g in groups)/6)
    assert (sd, df) == (pytest.approx(pooled), 6)
    half = tables.table(3, tables.read(folder))['mini', '±AP'].iloc[0]
    assert half == pytest.approx(stats.t.ppf(.975, 6)*pooled/3**.5)


def test_interval_of_a_difference(folder):
    "Seeds: the analysis of variance of complete blocks, written out; images: the spread of the paired draws; added in quadrature"
    runs = tables.read(folder)
    part = tables.select(3, runs)
    y = np.array(list(AP.values()))
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    half = stats.t.ppf(.975, 4)*np.sqrt((residual**2).sum()/4)*np.sqrt(2/3)
    of = lambda row: np.mean([d['AP'][1:] for d in part.cells[part.cells.row == row].draws], 0)
    draws = of('table3/C-R') - of('table3/R-R')
    tails = np.quantile(draws, [.025, .975]) - draws.mean()
    d = tables.difference(part, 'table3/C-R', 'table3/R-R')
    assert d['low'] == pytest.approx(d['difference'] - np.hypot(half, tails[1]), abs=1e-5)
    assert d['high'] == pytest.approx(d['difference'] + np.hypot(half, tails[0]), abs=1e-5)
    assert (d['seeds'], d['over']) == (3, 'seeds and images')
    assert d['high'] - d['low'] < 4  # the noise of the images that is common to both (sd 2) is not in it


def test_one_pair_of_rows_is_the_paired_t_test(tmp_path):
    for row in ('table3/R-R', 'table3/C-R'):
        for seed, ap in enumerate(AP[row]): run(tmp_path, row, seed, ap)
    d = tables.difference(tables.select(3, tables.read(tmp_path)), 'table3/C-R', 'table3/R-R')
    ref = stats.ttest_rel(AP['table3/C-R'], AP['table3/R-R']).confidence_interval()
    assert (d['low'], d['high'], d['over']) == (pytest.approx(ref.low), pytest.approx(ref.high), 'seeds')


def test_only_seeds_that_both_rows_have_are_compared(folder):
    run(folder, 'table3/R-R', 7, 99., draws=np.zeros(1000))
    d = tables.difference(tables.select(3, tables.read(folder)), 'table3/C-R', 'table3/R-R')
    assert d['seeds'] == 3 and d['difference'] == pytest.approx(np.mean(AP['table3/C-R']) - np.mean(AP['table3/R-R']))


def test_one_seed_says_so(tmp_path):
    draws = np.random.default_rng(0).normal(0, .1, 1000)
    run(tmp_path, 'table3/R-R', 0, 40., draws=draws)
    run(tmp_path, 'table3/C-R', 0, 42., draws=-draws)
    runs = tables.read(tmp_path)
    c = tables.claims(3, runs).iloc[0]
    assert (c.over, c.seeds, c.verdict) == ('images', 1, 'reproduced (one seed)')
    assert 'over images; 1 seed' in tables.sentence(c)
    assert 'Nothing was trained with two seeds' in tables.caption(3, runs)
    assert '±' not in tables.shown(tables.table(3, runs))['ours, mini scale', 'AP'].iloc[0]


@pytest.mark.parametrize('shift, expected', [(0, 'reproduced'), (-4.2, 'undecided'), (-12, 'not reproduced')])
def test_verdicts(tmp_path, shift, expected):
    for row, aps in AP.items():
        for seed, ap in enumerate(aps): run(tmp_path, row, seed, ap + shift*(row == 'table3/C-R'))
    c = tables.claims(3, tables.read(tmp_path)).set_index('claim').verdict
    assert c['negatives at random: prime positives (C/R) are better than random ones (R/R)'] == expected
    assert c['PISA (C/R) is better than OHEM (H/H)'] == 'not run'


def test_all_differences_of_a_claim_must_hold(tmp_path):
    "Table 4: both together better than ISR alone and than CARL alone"
    for seed in range(3):
        for row, ap in (('table4/baseline', 40), ('table4/isr', 42), ('table4/carl', 46), ('table4/isr-carl', 44)): run(tmp_path, row, seed, ap + .1*seed + .01*len(row))
    c = tables.claims(4, tables.read(tmp_path))
    assert c.verdict.tolist() == ['reproduced', 'reproduced', 'not reproduced']
    assert c.difference.iloc[2] == pytest.approx(-2 + .01*len('isr-'), abs=.02)


def test_sameness_needs_a_narrow_interval(tmp_path):
    for seed in range(3):
        for b, ap in ((.1, 40), (.2, 40.3), (.3, 40.1)): run(tmp_path, f'table5/k1-b{b}', seed, ap + seed)
    get = lambda: tables.claims(5, tables.read(tmp_path)).set_index('claim').verdict['CARL hardly depends on b (k = 1; b = 0.1, 0.2, 0.3)']
    assert get() == 'reproduced'
    run(tmp_path, 'table5/k1-b0.3', 3, 43.)
    run(tmp_path, 'table5/k1-b0.2', 3, 47.)
    run(tmp_path, 'table5/k1-b0.1', 3, 40.)
    assert get() == 'undecided'


def test_a_training_that_diverged(tmp_path):
    claim = lambda: tables.claims(5, tables.read(tmp_path)).set_index('claim').verdict['CARL with k = 2, b = 0 diverges']
    path = tmp_path/run(tmp_path, 'table5/k2-b0', 1, 30.)
    (path/'metrics.json').unlink()
    assert claim() == 'not run'  # it may be running
    (path/'error.txt').write_text('FloatingPointError: step 7: loss is nan\n')
    assert claim() == 'reproduced'
    assert (tables.shown(tables.table(5, tables.read(tmp_path)))['ours, mini scale', ''] == 'diverged').sum() == 1
    run(tmp_path, 'table5/k2-b0', 2, 30.)
    assert claim() == 'not reproduced'


def test_a_table_is_of_one_data_set(folder):
    run(folder, 'table3/R-R', 0, 99., data='shapes-tiny')
    runs = tables.read(folder)
    assert tables.table(3, runs)['mini', 'AP'].max() < 50
    assert 'Left out: 1 on other data' in tables.caption(3, runs)


def test_paper_scale_has_its_own_columns(folder):
    run(folder, 'table3/R-R', 0, 36.4, scale='paper', data='coco', gpu='H100')
    run(folder, 'table3/C-R', 0, 37.7, scale='paper', data='coco', gpu='H100')
    runs = tables.read(folder)
    df = tables.table(3, runs)
    assert df['paper'].seeds.tolist() == [1, 0, 1, 0, 0, 0, 0] and df['mini'].seeds.sum() == 9
    assert df['paper', 'ΔAP'].iloc[2] == pytest.approx(1.3)
    assert set(tables.claims(3, runs).scale) == {'mini', 'paper'}
    assert '0.4 GPU hours' in tables.caption(3, runs) and '1.8 hours of one core' in tables.caption(3, runs)


def test_runs_with_other_settings_are_in_no_row(folder):
    exp = row_experiment('table3/R-R', scale='mini', seed=5, overrides='train_cfg.max_epochs=1')
    path = folder/exp.id('shapes-1')
    record = json.loads(next(folder.glob('*/run.json')).read_text())
    write_json(path/'run.json', record | dataclasses.asdict(exp) | dict(id=path.name))
    write_json(path/'metrics.json', dict(AP=99.))
    runs = tables.read(folder)
    assert path.name in set(runs.id) and path.name not in set(tables.select(3, runs).cells.id)


def test_rows_that_two_tables_share_are_the_same_runs(folder):
    runs = tables.read(folder)
    assert set(tables.select(4, runs).cells.id) < set(tables.select(3, runs).cells.id)
    assert tables.select(7, runs).cells.row.tolist() == ['table4/baseline']*3


def test_time_is_compared_on_the_same_machine_alone(tmp_path):
    base, pisa = 'table1/faster_rcnn-r50-baseline', 'table1/faster_rcnn-r50-pisa'
    for row, seed, threads in ((base, 0, 1), (pisa, 0, 1), (base, 1, 1), (pisa, 1, 2)): run(tmp_path, row, seed, 40., threads=threads)
    for id, seconds in zip(tables.read(tmp_path).sort_values(['method', 'seed']).id, (100., 100., 130., 10.)):
        write_json(tmp_path/id/'run.json', json.loads((tmp_path/id/'run.json').read_text()) | dict(seconds=seconds))
    df = tables.table(1, tables.read(tmp_path))
    assert df['mini', 'time_ratio'].dropna().tolist() == [pytest.approx(1.3)]
    assert df['published', 'time_ratio'].iloc[1] == pytest.approx(.594/.585)


def test_voc_average_precision_of_older_runs_is_in_their_draws(tmp_path):
    row = 'table2/faster_rcnn-r50-baseline'
    id = run(tmp_path, row, 0, 50., draws=np.zeros(10), AP_VOC=80.)
    write_json(tmp_path/id/'metrics.json', dict(AP=50.))
    assert tables.table(2, tables.read(tmp_path))['mini', 'AP_VOC'].iloc[0] == 80.


@pytest.mark.parametrize('number', tables.TABLES)
def test_without_a_run(tmp_path, number):
    "Nothing of the paper's stands where our numbers would"
    (tmp_path/'runs').mkdir()
    runs = tables.read(tmp_path/'runs')
    df = tables.table(number, runs)
    assert (df['mini'].seeds == 0).all() and df[['mini', 'paper']].drop(columns=[('mini', 'seeds'), ('paper', 'seeds'), ('mini', 'runs'), ('paper', 'runs')]).isna().all(axis=None)
    text = tables.shown(df)
    assert set(text['ours, mini scale', '']) == set(text['ours, paper scale', '']) == {'not run'}
    assert set(tables.claims(number, runs).verdict) == {'not run'}
    md, csv, tex, record = tables.write(number, runs, tmp_path)
    assert 'no run' in md.read_text() and 'not run' in tex.read_text()
    assert all(not r[s]['runs'] for r in json.loads(record.read_text())['rows'].values() for s in ('mini', 'paper'))


def test_files(folder, tmp_path):
    runs = tables.read(folder)
    md, csv, tex, record = tables.write(3, runs, tmp_path/'out')
    read = pd.read_csv(csv)
    assert read['mini AP'].dropna().round(3).tolist() == pytest.approx([np.mean(AP[r]) for r in ('table3/R-R', 'table3/C-R', 'table3/R-H*')], abs=1e-3)
    lines = md.read_text().splitlines()
    assert len({line.count('|') for line in lines[:9]}) == 1  # seven rows below two lines of heading, all as wide
    body = tex.read_text().split(r'\midrule')[1].split(r'\bottomrule')[0].strip().splitlines()
    assert len(body) == 7 and len({line.count('&') for line in body}) == 1
    assert tex.read_text().count('{') == tex.read_text().count('}') and not set(tex.read_text()) & set('±Δ✓γβ×')
    kept = json.loads(record.read_text())
    assert sorted(id for r in kept['rows'].values() for id in r['mini']['runs']) == sorted(runs.id)
    assert kept['rows']['table3/C-R']['paper']['parameters']['dataset'] == 'coco'
    before = [f.read_bytes() for f in (md, csv, tex, record)]
    assert [f.read_bytes() for f in tables.write(3, tables.read(folder), tmp_path/'out')] == before


def test_published_differences_bear_out_the_claims():
    "The numbers of the paper are on the side that each claim says, so a claim's sign is not turned round"
    for c in tables.CLAIMS:
        numbers = {r.name: r.numbers for r in tables.TABLES[c.table].rows}
        first, *rest = c.metric.split('-')
        of = lambda row: numbers[row][first] - sum(numbers[row][m] for m in rest)
        for row, base in c.pairs:
            d = of(row) - of(base)
            if c.kind == 'above': assert d > 0, c
            if c.kind == 'below': assert d < 0, c
            if c.kind == 'same': assert abs(d) < .5, c


def test_sentences_are_those_of_the_numbers(folder):
    c = tables.claims(3, tables.read(folder)).iloc[0]
    assert tables.sentence(c) == (f'**reproduced**: negatives at random: prime positives (C/R) are better than random ones (R/R), Section 5.2 (v1). ΔAP: published +1.3, '
                                  f'here {np.mean(AP["table3/C-R"]) - 41:+.1f} (95%: {c.low:+.1f} to {c.high:+.1f} over seeds and images; 3 seeds).')
    text = tables.sentences(3, tables.read(folder))
    assert text.splitlines()[0] == '**Claims of the paper, at mini scale**: of 9, 1 reproduced, 1 not reproduced, 2 undecided, 5 not run.'
    assert text.count('\n- **') == 5 and r'H\*' in text and '<' not in text and 'nan' not in text


def test_unknown_table(tmp_path):
    refused(lambda: tables.table(8, tables.read(tmp_path)), 'Choose from: 1, 2, 3')


@pytest.mark.parametrize('number', (4,))
def test_notebook_writes_where_it_is_told(folder, tmp_path, number):
    "papermill runs the cell that nbdev_test leaves out"
    p = subprocess.run([sys.executable, '-m', 'papermill', f'nbs/paper/table{number}.ipynb', str(tmp_path/'x.ipynb'), '-p', 'runs', str(folder), '-p', 'out', str(tmp_path/'out')],
                       cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-2000:]
    assert sorted(f.name for f in (tmp_path/'out').iterdir()) == sorted(f'table4{part}.{kind}' for part in ('', '_gradient') for kind in ('csv', 'json', 'md', 'tex'))
