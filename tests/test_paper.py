"pisa.lab.paper: the tables agree with what the paper says of them, and with each other"
import json
import pandas as pd
import pytest
from refusal import refused
from pisa.lab.files import root
from pisa.lab.paper import published

ALL = ('table1', 'table2', 'table3', 'table4', 'table5_isr', 'table5_carl', 'table6', 'table7', 'carl_gradient', 'released')


def row(table, **keys):
    t = published(table)
    return t[(t[list(keys)] == pd.Series(keys, dtype=object)).all(axis=1)].squeeze(axis=0)[t.attrs['metrics']]


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
