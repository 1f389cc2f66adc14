"pisa.lab.tables from made-up run folders: means, paired intervals, verdicts, missing runs, other data, files"
import dataclasses, json, shutil
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip('mmdet')
from refusal import refused
from pisa.lab import claims, paper, runs as store, statistics, tables
from pisa.lab.files import write_json
from pisa.lab.rows import TABLES, row_experiment
from notebooks import log, papermill

ROOT = Path(__file__).resolve().parents[1]


def run(folder, row, seed, ap, scale='mini', data='shapes-1', draws=None, gpu=None, threads=1, precision='auto', **metrics):
    "A complete run, as a training leaves it"
    exp = row_experiment(row, scale=scale, seed=seed, precision=precision)
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


PRIME = 'table3/C-R', 'table3/R-R'
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
    df = tables.table(3, statistics.read_runs(folder))
    rows = dict(zip(df.attrs['rows'], df['mini'].to_dict('records')))
    assert rows['table3/C-R']['AP'] == pytest.approx(np.mean(AP['table3/C-R']))
    assert rows['table3/C-R']['ΔAP'] == pytest.approx(np.mean(AP['table3/C-R']) - np.mean(AP['table3/R-R']))
    assert [r['seeds'] for r in rows.values()] == [3, 0, 3, 0, 0, 3, 0]
    assert np.isnan(rows['table3/H-H']['AP']) and np.isnan(rows['table3/R-R']['ΔAP'])  # not run; the baseline itself
    assert df['published'].AP.tolist() == paper.published('table3').AP.tolist()


def test_interval_of_a_mean_is_the_pooled_t_interval(folder):
    part = statistics.select(3, statistics.read_runs(folder))
    sd, df = part.noise('AP', paired=False)
    groups = [np.array(v) for v in AP.values()]
    pooled = np.sqrt(sum(((g - g.mean())**2).sum() for g in groups)/6)
    assert (sd, df) == (pytest.approx(pooled), 6)
    half = tables.table(3, statistics.read_runs(folder))['mini', '±AP'].iloc[0]
    assert half == pytest.approx(stats.t.ppf(.975, 6)*pooled/3**.5)


def test_interval_of_a_difference(folder):
    "Seeds: the analysis of variance of complete blocks, written out; images: the spread of the paired draws; added in quadrature"
    runs = statistics.read_runs(folder)
    part = statistics.select(3, runs)
    y = np.array(list(AP.values()))
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    half = stats.t.ppf(.975, 4)*np.sqrt((residual**2).sum()/4)*np.sqrt(2/3)
    of = lambda row: np.mean([d['AP'][1:] for d in part.cells[part.cells.row == row].draws], 0)
    draws = of('table3/C-R') - of('table3/R-R')
    tails = np.quantile(draws, [.025, .975]) - draws.mean()
    d = statistics.difference(part, [PRIME])
    assert d['low'] == pytest.approx(d['difference'] - np.hypot(half, tails[1]), abs=1e-5)
    assert d['high'] == pytest.approx(d['difference'] + np.hypot(half, tails[0]), abs=1e-5)
    assert (d['pairs'], d['over_seeds']) == (3, pytest.approx(half))
    assert d['high'] - d['low'] < 4  # the noise of the images that is common to both (sd 2) is not in it


def test_one_pair_of_rows_is_the_paired_t_test(tmp_path):
    for row in ('table3/R-R', 'table3/C-R'):
        for seed, ap in enumerate(AP[row]): run(tmp_path, row, seed, ap)
    d = statistics.difference(statistics.select(3, statistics.read_runs(tmp_path)), [PRIME])
    ref = stats.ttest_rel(AP['table3/C-R'], AP['table3/R-R']).confidence_interval()
    assert (d['low'], d['high']) == (pytest.approx(ref.low), pytest.approx(ref.high))


def test_mean_over_two_detectors(tmp_path):
    "Each detector has its own shift of a seed, so its differences are independent: the variance of their mean is a quarter of the sum"
    rng, y = np.random.default_rng(2), {}
    for detector, seeds in (('faster_rcnn', (0, 1, 2)), ('retinanet', (0, 1))):
        for method in ('baseline', 'pisa'):
            y[detector, method] = np.array([40 + 5*s + 2*(method == 'pisa') + rng.normal() for s in seeds])
            for seed, ap in zip(seeds, y[detector, method]): run(tmp_path, f'table1/{detector}-r50-{method}', seed, ap)
    d = [y[k, 'pisa'] - y[k, 'baseline'] for k in ('faster_rcnn', 'retinanet')]
    sd = np.sqrt(sum(((x - x.mean())**2).sum() for x in d)/3/2)  # of a run: half of the variance of a difference
    half = stats.t.ppf(.975, 3)*np.sqrt(2*sd**2*(1/3 + 1/2)/4)
    c = claims.judge_table(1, statistics.read_runs(tmp_path)).set_index('claim').loc['on average over the detectors, PISA raises AP †']
    assert c.difference == pytest.approx(np.mean([x.mean() for x in d])) and c.pairs == 5
    assert (c.low, c.high) == (pytest.approx(c.difference - half), pytest.approx(c.difference + half))
    assert c.published == pytest.approx(np.mean([37.8 - 36.7, 37.2 - 35.9]))  # of the two that were run


def test_only_seeds_that_both_rows_have_are_compared(folder):
    run(folder, 'table3/R-R', 7, 99., draws=np.zeros(1000))
    run(folder, 'table3/C-R', 8, 10., draws=np.zeros(1000))
    runs = statistics.read_runs(folder)
    d = statistics.difference(statistics.select(3, runs), [PRIME])
    assert d['pairs'] == 3 and d['difference'] == pytest.approx(np.mean(AP['table3/C-R']) - np.mean(AP['table3/R-R']))
    rows = tables.shown(tables.table(3, runs))['ours, mini scale', 'AP']
    base, prime = rows.iloc[[0, 2]]
    assert base.startswith(f'{(sum(AP["table3/R-R"]) + 99)/4:.1f}')  # all that it has
    assert prime.startswith(f'{np.mean(AP["table3/C-R"]):.1f}') and prime.endswith(f'from {np.mean(AP["table3/R-R"]):.1f}')


def test_what_a_row_of_a_table_shows_adds_up(folder):
    "mean = baseline + difference, where both have the same seeds; else the baseline that is named"
    run(folder, 'table3/H-H', 1, 50., draws=np.zeros(1000))
    rows = tables.shown(tables.table(3, statistics.read_runs(folder)))['ours, mini scale', 'AP']
    base = float(rows.iloc[0].split()[0])
    for text in rows.iloc[1:][rows.iloc[1:] != '']:
        mean, rest = text.replace('**', '').split('\n')
        start = float(rest.split(' from ')[1]) if 'from' in rest else base
        assert float(mean.split()[0]) == pytest.approx(start + float(rest.split()[0]), abs=.11)
    assert 'from 42.0' in rows.iloc[3] and 'from' not in rows.iloc[2]


def test_one_seed_judges_nothing(tmp_path):
    draws = np.random.default_rng(0).normal(0, .1, 1000)
    run(tmp_path, 'table3/R-R', 0, 40., draws=draws)
    run(tmp_path, 'table3/C-R', 0, 42., draws=-draws)
    runs = statistics.read_runs(tmp_path)
    c = claims.judge_table(3, runs).iloc[0]
    assert (c.difference, c.pairs, c.verdict) == (2., 1, 'out of reach') and np.isnan([c.low, c.high, c.needed]).all()
    assert 'Nothing was trained with two seeds' in tables.caption(3, runs) and '±0.4' in tables.caption(3, runs)  # 1.96 x .2: the images
    assert '±' not in tables.shown(tables.table(3, runs))['ours, mini scale', 'AP'].iloc[2]
    assert 'No interval is known yet' in claims.counts_markdown(claims.judge_all(runs))


def test_one_pair_judged_by_the_noise_of_other_rows(folder):
    run(folder, 'table3/H-H', 0, 30., draws=np.zeros(1000))
    c = claims.judge_table(3, statistics.read_runs(folder)).set_index('claim').loc['PISA (C/R) is better than OHEM (H/H)']
    assert (c.verdict, c.pairs) == ('reproduced (one seed)', 1) and c.low > 0
    cell = tables.shown(tables.table(3, statistics.read_runs(folder)))['ours, mini scale', 'AP'].iloc[3]
    assert cell.split('\n')[1].startswith('-') and '**' not in cell  # one pair is not bold


@pytest.mark.parametrize('effect, pairs', [(1., 2), (.5, 7), (.05, 680)])
def test_needed_pairs(effect, pairs):
    "The half-width shrinks with the root of the number of pairs, if pairs share nothing of what the images do to them"
    found = dict(pairs=3, over_seeds=.66, over_images=.35)
    n = statistics.needed(found, effect)
    reach = lambda n: np.hypot(.66, .35)*np.sqrt(3/n)
    assert reach(n) <= effect < reach(n - 1) and n == pytest.approx(pairs, rel=.2)
    assert statistics.needed(found, 0.) == np.inf and np.isnan(statistics.needed(found, np.nan))


def test_undecided_or_out_of_reach(tmp_path):
    "The paper's effect is 1.3; the same difference, with little noise and with much"
    for name, noise, expected in (('quiet', .3, 'undecided'), ('loud', 3., 'out of reach')):
        for seed, shift in enumerate((0, 1, -1)):
            run(tmp_path/name, 'table3/R-R', seed, 40 + seed)
            run(tmp_path/name, 'table3/C-R', seed, 40 + seed + .05 + noise*shift)
        c = claims.judge_table(3, statistics.read_runs(tmp_path/name)).iloc[0]
        assert c.verdict == expected and c.low < 0 < c.high
        assert (c.needed <= c.pairs) == (expected == 'undecided') == ((c.high - c.low)/2 <= c.published)


@pytest.mark.parametrize('shift, expected', [(0, 'reproduced'), (-4.2, 'undecided'), (-12, 'not reproduced')])
def test_verdicts(tmp_path, shift, expected):
    for row, aps in AP.items():
        for seed, ap in enumerate(aps): run(tmp_path, row, seed, ap + shift*(row == 'table3/C-R'))
    c = claims.judge_table(3, statistics.read_runs(tmp_path)).set_index('claim').verdict
    assert c['negatives at random: prime positives (C/R) are better than random ones (R/R)'] == expected
    assert c['PISA (C/R) is better than OHEM (H/H)'] == 'not run'


def test_all_differences_of_a_claim_must_hold(tmp_path):
    "Table 4: both together better than ISR alone and than CARL alone"
    for seed in range(3):
        for row, ap in (('table4/baseline', 40), ('table4/isr', 42), ('table4/carl', 46), ('table4/isr-carl', 44)): run(tmp_path, row, seed, ap + .1*seed + .01*len(row))
    c = claims.judge_table(4, statistics.read_runs(tmp_path))
    assert c.verdict.tolist() == ['reproduced', 'reproduced', 'reproduced', 'not reproduced']
    assert c.difference.iloc[3] == pytest.approx(-2 + .01*len('isr-'), abs=.02)


def test_sameness_needs_a_narrow_interval(tmp_path):
    for seed in range(3):
        for b, ap in ((0, 39.9), (.1, 40), (.2, 40.3), (.3, 40.1)): run(tmp_path, f'table5/k1-b{b}', seed, ap + seed)
    get = lambda: claims.judge_table(5, statistics.read_runs(tmp_path)).set_index('claim').verdict['CARL hardly depends on b (k = 1; b = 0, 0.1, 0.2, 0.3)']
    assert get() == 'reproduced'
    run(tmp_path, 'table5/k1-b0.3', 3, 43.)
    run(tmp_path, 'table5/k1-b0.2', 3, 47.)
    run(tmp_path, 'table5/k1-b0.1', 3, 40.)
    assert get() == 'out of reach'


def test_a_training_that_diverged(tmp_path):
    claim = lambda: claims.judge_table(5, statistics.read_runs(tmp_path)).set_index('claim').verdict['CARL with k = 2, b = 0 diverges']
    path = tmp_path/run(tmp_path, 'table5/k2-b0', 1, 30.)
    (path/'metrics.json').unlink()
    assert claim() == 'not run'  # it may be running
    (path/'error.txt').write_text('FloatingPointError: step 7: loss is nan\n')
    assert claim() == 'reproduced'
    assert (tables.shown(tables.table(5, statistics.read_runs(tmp_path)))['ours, mini scale', ''] == 'diverged').sum() == 1
    run(tmp_path, 'table4/baseline', 2, 40.)
    row = tmp_path/run(tmp_path, 'table5/k2-b0', 2, 30.)
    assert claim() == 'not reproduced (one seed)'
    shutil.rmtree(row)
    run(tmp_path, 'table5/k2-b0', 2, 12.)  # a finite loss, but nothing is found
    assert claim() == 'reproduced (one seed)'


def test_a_table_is_of_one_data_set(folder):
    run(folder, 'table3/R-R', 0, 99., data='shapes-tiny')
    runs = statistics.read_runs(folder)
    assert tables.table(3, runs)['mini', 'AP'].max() < 50
    assert 'Left out: 1 on other data' in tables.caption(3, runs)


def test_paper_scale_has_its_own_columns(folder):
    run(folder, 'table3/R-R', 0, 36.4, scale='paper', data='coco', gpu='H100')
    run(folder, 'table3/C-R', 0, 37.7, scale='paper', data='coco', gpu='H100')
    runs = statistics.read_runs(folder)
    df = tables.table(3, runs)
    assert df['paper'].seeds.tolist() == [1, 0, 1, 0, 0, 0, 0] and df['mini'].seeds.sum() == 9
    assert df['paper', 'ΔAP'].iloc[2] == pytest.approx(1.3)
    assert set(claims.judge_table(3, runs).scale) == {'mini', 'paper'}
    assert '0.4 GPU hours' in tables.caption(3, runs) and '1.8 hours of one core' in tables.caption(3, runs)


def test_runs_with_other_settings_are_in_no_row(folder):
    exp = row_experiment('table3/R-R', scale='mini', seed=5, overrides='train_cfg.max_epochs=1')
    path = folder/exp.id('shapes-1')
    record = json.loads(next(folder.glob('*/run.json')).read_text())
    write_json(path/'run.json', record | dataclasses.asdict(exp) | dict(id=path.name))
    write_json(path/'metrics.json', dict(AP=99.))
    runs = statistics.read_runs(folder)
    assert path.name in set(runs.id) and path.name not in set(statistics.select(3, runs).cells.id)


def test_rows_that_two_tables_share_are_the_same_runs(folder):
    runs = statistics.read_runs(folder)
    assert set(statistics.select(4, runs).cells.id) < set(statistics.select(3, runs).cells.id)
    assert statistics.select(7, runs).cells.row.tolist() == ['table4/baseline']*3


def test_time_is_compared_on_the_same_machine_alone(tmp_path):
    base, pisa = 'table1/faster_rcnn-r50-baseline', 'table1/faster_rcnn-r50-pisa'
    for row, seed, threads in ((base, 0, 1), (pisa, 0, 1), (base, 1, 1), (pisa, 1, 2)): run(tmp_path, row, seed, 40., scale='paper', threads=threads)
    for id, seconds in zip(statistics.read_runs(tmp_path).sort_values(['method', 'seed']).id, (100., 100., 130., 10.)):
        write_json(tmp_path/id/'run.json', json.loads((tmp_path/id/'run.json').read_text()) | dict(seconds=seconds))
    runs = statistics.read_runs(tmp_path)
    df = tables.table(1, runs)
    assert df['paper', 'time_ratio'].dropna().tolist() == [pytest.approx(1.3)]
    assert df['published', 'time_ratio'].iloc[1] == pytest.approx(.594/.585)
    c = claims.judge_table(1, runs)
    assert c[c.kind == 'cheap'].scale.tolist() == ['paper'] and c[c.kind == 'cheap'].difference.tolist() == [pytest.approx(1.3)]


def test_time_at_mini_scale_is_the_benchs(folder):
    assert 'ours, full size' not in tables.shown(tables.table(1, statistics.read_runs(folder)))
    row = lambda method, ratio: dict(method=method, step_ratio=ratio, low=ratio - .02, high=ratio + .01)
    (folder/'records/bench').mkdir(parents=True)
    write_json(folder/'records/bench/step.json', {'tables': [{'title': f'{d}: a step', 'rows': [row('baseline', 1.), row('pisa', r), row('mmdet', 9.)]}
                                                             for d, r in (('faster_rcnn', 1.01), ('ssd300', 1.02), ('unheard_of', 7.))]})
    runs = statistics.read_runs(folder)
    shown = tables.shown(tables.table(1, runs))['ours, full size', 'step']
    assert shown[shown != ''].to_dict() == {('Faster R-CNN', 'ResNet-50', 'PISA'): '×1.010\n0.990–1.020', ('SSD300', 'VGG16', 'PISA'): '×1.020\n1.000–1.030'}
    assert 'step.json' in tables.caption(1, runs) and 'step.json' not in tables.caption(3, runs)
    assert 'train_time' not in tables.table(1, runs)['mini']


@pytest.mark.parametrize('number', TABLES)
def test_without_a_run(tmp_path, number):
    "Nothing of the paper's stands where our numbers would"
    (tmp_path/'runs').mkdir()
    runs = statistics.read_runs(tmp_path/'runs')
    df = tables.table(number, runs)
    assert (df['mini'].seeds == 0).all() and df[['mini', 'paper']].drop(columns=[('mini', 'seeds'), ('paper', 'seeds'), ('mini', 'runs'), ('paper', 'runs')]).isna().all(axis=None)
    text = tables.shown(df)
    assert set(text['ours, mini scale', '']) == {'not run'} and 'ours, paper scale' not in text
    assert set(claims.judge_table(number, runs).verdict) == {'not run'}
    md, csv, tex, record = tables.write(number, runs, tmp_path)
    assert 'no run' in md.read_text() and 'not run' in tex.read_text()
    assert all(not r[s]['runs'] for r in json.loads(record.read_text())['rows'].values() for s in ('mini', 'paper'))


def test_files(folder, tmp_path):
    runs = statistics.read_runs(folder)
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
    assert [f.read_bytes() for f in tables.write(3, statistics.read_runs(folder), tmp_path/'out')] == before


def test_published_differences_bear_out_the_claims():
    "The numbers of the paper are on the side that each claim says, so a claim's sign is not turned round"
    for c in claims.CLAIMS:
        numbers = {r.name: r.numbers for r in TABLES[c.table].rows}
        first, *rest = c.metric.split('-')
        of = lambda row: numbers[row][first] - sum(numbers[row][m] for m in rest)
        found = [of(row) - of(base) for row, base in c.pairs]
        for d in [np.mean(found)] if c.mean else found:
            if c.kind == 'above': assert d > 0, c
            if c.kind == 'below': assert d < 0, c
            if c.kind == 'same': assert abs(d) < .5, c
            if c.kind == 'no gain': assert d < .5, c


def test_claims_in_words_are_those_of_the_numbers(folder):
    runs = statistics.read_runs(folder)
    c, text = claims.judge_table(3, runs).iloc[0], claims.claims_markdown(3, runs)
    lines = text.replace('\N{NO-BREAK SPACE}', ' ').splitlines()
    assert lines[0] == '**Claims of Section 5.2 (v1), at mini scale**: of 13, 1 reproduced, 1 not reproduced, 1 undecided, 1 out of reach, 9 not run.'
    assert lines[4] == ('| negatives at random: prime positives (C/R) are better than random ones (R/R) | ΔAP | +1.3 | '
                        f'{np.mean(AP["table3/C-R"]) - 41:+.1f} ± {(c.high - c.low)/2:.1f} | 3 | {c.needed:.0f} | **reproduced** |')
    assert len(lines) == 4 + 13 and len({line.count('|') for line in lines[2:]}) == 1
    assert r'H\*' in text and '<' not in text and 'nan' not in text and '-0.0' not in text


def test_a_run_that_no_recipe_gives_is_not_counted(folder):
    old = folder/'faster_rcnn-baseline-shapes-s9-00000000'
    old.mkdir()
    record = json.loads(next(folder.glob('*/run.json')).read_text())
    write_json(old/'run.json', record | dict(id=old.name))
    write_json(old/'metrics.json', dict(AP=99.))
    assert len(store.load(folder)) == 10 and len(statistics.read_runs(folder)) == 9


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
    old = [of_recipe_4(tmp_path, row, seed, ap, amx=True) for row in PRIME for seed, ap in ((0, 30.), (1, 31.))]
    of_recipe_4(tmp_path, 'table3/R-R', 2, 99., amx=False)  # trained in float32 under a name that says nothing of it
    new = [run(tmp_path, row, 0, 50.) for row in PRIME]
    runs = statistics.read_runs(tmp_path)
    assert runs.attrs['recipe'] == 4 and runs.attrs['others'] == {5: 2} and set(runs.source) == {'record'}
    assert set(statistics.select(3, runs).cells.id) == set(old)
    assert 'recipe 4: precision at mini scale depends on the processor' in (said := tables.caption(3, runs))
    assert 'Not counted: 2 runs of recipe 5 (`-p recipe 5` draws them)' in said and 'your own' not in said
    runs = statistics.read_runs(tmp_path, recipe=5)
    assert set(statistics.select(3, runs).cells.id) == set(new)
    assert '2 runs, 2 of them your own' in tables.caption(3, runs) and f'`{new[0]}` (your own)' in tables.run_ids(3, runs)
    refused(lambda: statistics.read_runs(tmp_path, recipe=3), 'recipe=3: there is no run of it. Choose from: 4, 5')
    refused(lambda: statistics.read_runs(tmp_path, recipe='5'), "recipe='5': give a whole number")
    assert set(statistics.read_runs(tmp_path, own=False).id) == set(old)


def test_the_precision_of_most_runs_is_drawn_and_the_other_is_counted(tmp_path):
    for seed in (0, 1):
        for row in PRIME: run(tmp_path, row, seed, 40., precision='float32')
    run(tmp_path, PRIME[0], 2, 99.)
    runs = statistics.read_runs(tmp_path)
    assert runs.attrs['precision'] == {'mini': 'float32'} and len(statistics.select(3, runs).cells) == 4
    assert 'Not counted: 1 runs in another precision' in tables.caption(3, runs)


def test_an_own_run_counts_in_place_of_a_record_of_the_same_training(folder):
    id = run(folder, 'table3/H-H', 0, 41.)
    store.add_record(id, folder)
    write_json(folder/id/'metrics.json', dict(AP=43.))
    of = lambda: store.load(folder).set_index('id').loc[id, ['AP', 'source']].tolist()
    assert of() == [43., 'own'] and len(statistics.read_runs(folder)) == 10
    store.delete(id, folder)
    assert of() == [41., 'record']


def test_overview_counts_a_comparison_once(folder):
    judged = claims.judge_all(statistics.read_runs(folder))
    assert len(judged) == len(claims.CLAIMS) - 1  # the cost in time is not judged at mini scale
    same = judged[judged.compares == judged.compares[judged.claim == 'both together raise AP'].iloc[0]]
    assert same.table.tolist() == ['Table 1', 'Table 3', 'Table 4'] and same.verdict.nunique() == same.difference.nunique() == 1
    lines = claims.counts_markdown(judged).splitlines()
    counts = {line.split('|')[1].strip(): [int(n) for n in line.split('|')[2:-1]] for line in lines if line.startswith('|') and '---' not in line and 'scale' not in line}
    assert [sum(c) for c in (counts['**all**'], counts['**counted once**'])] == [len(judged), judged.compares.nunique()]
    assert counts['**all**'] == np.sum([c for t, c in counts.items() if not t.startswith('**')], 0).tolist()
    assert counts['**counted once**'][0] < counts['**all**'][0]  # reproduced, in three tables


def test_forest_has_each_comparison_once_on_the_claimed_side(folder):
    plt = pytest.importorskip('matplotlib.pyplot')
    for seed in range(3): run(folder, 'table3/H*-R', seed, 39. + seed/10)
    judged = claims.judge_all(statistics.read_runs(folder))
    ax, = claims.forest(judged).axes
    labels = {label.get_text(): y for label, y in zip(ax.get_yticklabels(), ax.get_yticks())}
    run_ = judged[judged.verdict != 'not run']
    assert len([t for t in labels if not t.startswith(('Table', 'Section'))]) == run_.compares.nunique() < len(run_)
    assert 'Faster R-CNN, ResNet-50: PISA raises AP (and Tables 3, 4)' in labels
    published = next(line for line in ax.lines if line.get_label() == 'published')
    assert (np.array(published.get_xdata()) > 0).all()  # the paper's numbers bear out its claims, 'below' turned round
    harm = labels['mining positives does harm, negatives at random (H*/R below R/R)']
    dots = {round(y, 3): x for c in ax.containers if hasattr(c, 'lines') for x, y in zip(c.lines[0].get_xdata(), c.lines[0].get_ydata())}
    assert dots[round(harm, 3)] == pytest.approx(41 - 39.1)
    plt.close('all')


def test_unknown_table(tmp_path):
    refused(lambda: tables.table(8, statistics.read_runs(tmp_path)), 'Choose from: 1, 2, 3')


@pytest.mark.parametrize('number, name', [('3', 'table3'), ('text', 'carl_gradient')])
def test_notebook_writes_where_it_is_told(folder, tmp_path, number, name):
    "papermill runs the cell that nbdev_test leaves out"
    log(papermill('paper/table', tmp_path/'x.ipynb', number=number, runs=folder, out=tmp_path/'out'))
    assert sorted(f.name for f in (tmp_path/'out').iterdir()) == [f'{name}.{kind}' for kind in ('csv', 'json', 'md', 'tex')]
