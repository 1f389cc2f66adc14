"pisa.lab.paper: the tables agree with what the paper says of them, and with each other"
import json, os, subprocess, sys
import pandas as pd
import pytest
from refusal import refused
from pisa.lab.files import root
from pisa.lab.paper import published

ALL = ('table1', 'table2', 'table3', 'table4', 'table5_isr', 'table5_carl', 'table6', 'table7', 'carl_gradient', 'released')


def row(table, **keys):
    t = published(table)
    return t[(t[list(keys)] == pd.Series(keys, dtype=object)).all(axis=1)].squeeze(axis=0)[t.attrs['metrics']]


def gain(table, metric='AP', **keys):
    return round(row(table, method='pisa', **keys)[metric] - row(table, method='baseline', **keys)[metric], 3)


@pytest.mark.parametrize('detector, backbone, printed', [
    ('faster_rcnn', 'r50', 1.1), ('faster_rcnn', 'x101_32x4d', 1.2), ('mask_rcnn', 'r50', 1.0), ('mask_rcnn', 'x101_32x4d', 1.0),
    ('retinanet', 'r50', 1.3), ('retinanet', 'x101_32x4d', 1.4), ('ssd300', 'vgg16', 2.0)])
def test_gains_printed_in_table_1(detector, backbone, printed):
    assert gain('table1', detector=detector, backbone=backbone) == printed


def test_statements_of_the_text():
    "Sections 5.2 and 5.3 (v1)"
    def t3(pos, neg): return row('table3', pos=pos, neg=neg)
    def t4(isr, carl): return row('table4', isr=isr, carl=carl)
    said = [(t3('C', 'R') - t3('H*', 'R'), 1.7), (t3('C', 'R') - t3('R', 'R'), 1.3), (t3('C', 'H*') - t3('H*', 'H*'), 1.3), (t3('C', 'H*') - t3('R', 'H*'), 1.1),
            (t4(True, False) - t4(False, False), .7), (t4(False, True) - t4(False, False), .8), (t4(True, True) - t4(False, False), 1.3)]
    assert [d.AP for d, _ in said] == pytest.approx([v for _, v in said])
    mined, drawn = [row('table3', pos=p, neg='R').AP for p in ('H*', 'R')], [row('table3', pos='R', neg=n).AP for n in ('H*', 'R')]
    assert mined[0] < mined[1] and drawn[0] > drawn[1]  # hard mining hampers the positives and helps the negatives
    assert all(t3('C', n).AP > t3(p, n).AP for p, n in (('H*', 'R'), ('H*', 'H*'), ('R', 'H*'))) and t3('C', 'R').AP > t3('H', 'H').AP
    assert published('table7').AP.is_monotonic_increasing and published('table6').AP.is_monotonic_increasing
    assert row('carl_gradient', gradient=True).AP - row('carl_gradient', gradient=False).AP == pytest.approx(.6)


def test_rows_that_stand_in_two_tables():
    assert row('table4', isr=False, carl=False).tolist() == row('table3', pos='R', neg='R').tolist()
    assert row('table4', isr=True, carl=True).tolist() == row('table3', pos='C', neg='R').tolist()
    assert row('table4', isr=True, carl=False).AP == row('table5_isr', gamma=2, beta=0).AP == row('table7', metric='IoU-HLR').AP
    assert row('table4', isr=False, carl=True).AP == row('table5_carl', k=1, b=.1).AP == row('carl_gradient', gradient=True).AP


@pytest.mark.parametrize('table', ALL)
def test_what_a_slip_of_the_finger_would_break(table):
    t = published(table)
    keys, metrics = t.attrs['keys'], t.attrs['metrics']
    assert t.columns.tolist() == keys + metrics and not t.duplicated(keys).any() and t[keys].notna().all(axis=None)
    assert (t[metrics].dtypes == float).all() and t.attrs['where'] and '\n' not in t.attrs['note']
    assert t.AP.dropna().between(25, 55).all()
    if 'AP50' in t:
        full = t.dropna()
        assert (full.AP50 > full.AP75).all() and (full.AP75 > full.AP).all() and (full.AP_S < full.AP_M).all() and (full.AP_M < full.AP_L).all()
        assert (full.AP_S < full.AP).all() and (full.AP < full.AP_L).all() and (full.AP50 < full.AP*1.75).all()
    assert bool(t[metrics].isna().any(axis=None)) == (table in ('table5_carl', 'table7', 'released'))


def test_released_numbers_are_those_that_were_collected():
    "From the file beside the paper's text: three numbers a row, `baseline_v2` is the baseline of PISA's own version"
    t = published('released').set_index(['detector', 'backbone', 'method'])
    file = root().parent/'shared/paper/released_numbers.json'
    if not file.exists(): pytest.skip(f'{file} is not there')
    names = dict(baseline_v1='older baseline', baseline_v2='baseline', pisa='pisa')
    want = {(r['detector'], r['backbone'], name): [r[k], r[f'mask_{k}']] for r in json.loads(file.read_text())['rows']
            for k, name in names.items() if r[k] is not None}
    assert {k: [None if v != v else v for v in row] for k, row in zip(t.index, t.values.tolist())} == want


def test_a_copy_is_given():
    t = published('table3')
    t.loc[0, 'AP'] = 0
    t.attrs['where'] = ''
    assert row('table3', pos='R', neg='R').AP == 36.4 and published('table3').attrs['where'] == 'Table 3 (v1)'


def test_unknown_table():
    for name in ('table5', 'Table1'): refused(lambda: published(name), f"table='{name}' is not known. Choose from: {', '.join(ALL)}")


def test_needs_pandas_alone(tmp_path):
    "No file beside it and no other package: it works wherever it is installed"
    code = "import sys, pisa.lab.paper as p; print(p.published('table2').AP.iloc[-1], [m for m in ('torch', 'mmdet', 'matplotlib') if m in sys.modules])"
    (tmp_path/'pisa/lab').mkdir(parents=True)
    for f in ('__init__', 'lab/__init__', 'lab/paper'): (tmp_path/'pisa'/f'{f}.py').write_text((root()/'pisa'/f'{f}.py').read_text())
    out = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(tmp_path)), capture_output=True, text=True, check=True).stdout
    assert out.strip() == '51.3 []'
