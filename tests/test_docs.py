"What a reader meets: links, outputs without traces of a machine, and the pages that are made of notebooks"
import json, re, sys
from pathlib import Path
import pytest

pytest.importorskip('nbconvert')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'.ci'))
from show import cleaned, code_hash, is_shown, notebooks

READ = {p: json.loads(p.read_text()) for p in notebooks()}


def prose(nb): return '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')


@pytest.mark.parametrize('file', [ROOT/'README.md', ROOT/'CONTRIBUTING.md', ROOT/'runs/records/README.md', *READ], ids=lambda p: p.stem)
def test_links_lead_to_files(file):
    text = re.sub(r'```.*?```', '', prose(READ[file]) if file in READ else file.read_text(), flags=re.S)
    links = [l.split('#')[0] for l in re.findall(r'\]\(([^)\s]+)\)', text) if not l.startswith(('http', '#', 'attachment:'))]
    assert not [l for l in links if not (file.parent/l).exists()]


def test_outputs_have_no_place_of_a_machine_and_are_small():
    outputs = {p: json.dumps([c.get('outputs', []) for c in nb['cells']]) for p, nb in READ.items()}
    for p, text in outputs.items():
        assert not re.findall(rf'/root/|/home/|{re.escape(str(ROOT))}/|/tmp/tmp|object at 0x|\d+%\|', text), p
    assert sum(p.stat().st_size for p in READ) < 8e6


def test_a_change_of_code_is_noticed_and_one_of_prose_is_not():
    nb = dict(metadata={}, cells=[dict(cell_type='markdown', source=['a']), dict(cell_type='code', source=['x = 1\n', 'x'])])
    nb['metadata']['executed'] = code_hash(nb)
    nb['cells'][0]['source'] = ['b']
    assert is_shown(nb)
    nb['cells'][1]['source'] = ['x = 2\n', 'x']
    assert not is_shown(nb)
    nb['cells'][1] = dict(cell_type='code', source=['x = 1\n', 'x'], outputs=['2'])
    assert not is_shown(nb)


def test_what_is_kept_of_outputs():
    out = [dict(output_type='stream', name='stderr', text='warning'), dict(output_type='stream', name='stdout', text='  3%|=   | 1/9\nit is in /a/place/x\n'),
           dict(output_type='display_data', data={'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'widget'}),
           dict(output_type='display_data', data={'text/html': '<table id="T_1a2b3"><td id="T_1a2b3_row0">', 'text/plain': '/tmp/ab/tmp12345678/y'})]
    kept = cleaned(out, {'/a/place': 'runs'})
    assert [o.get('text') for o in kept] == ['it is in runs/x\n', None]
    assert kept[1]['data'] == {'text/html': '<table id="T_00000"><td id="T_00000_row0">', 'text/plain': '/tmp/folder/y'}


def test_formulas_and_links_of_a_page():
    pytest.importorskip('latex2mathml')
    from docs import markdown
    text = markdown('The weight $w_i$ of `$HOME` is in [11](11_isr.ipynb), not in [this](https://a.b/c.ipynb).\n```\n$x$\n```')
    assert 'cost $5 and $6' in markdown('They cost $5 and $6.')  # no formula: a space stands before the second sign
    assert '<math' in text and '`$HOME`' in text and '](11_isr.html)' in text and 'https://a.b/c.ipynb' in text and '```\n$x$\n```' in text


def test_the_readmes_lines_run():
    "The first block of Python, as printed; both losses keep their sums"
    here = {}
    exec(re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(), re.S)[0], here)
    assert here['pos_loss'].item() == pytest.approx(here['cls_loss'].sum().item(), rel=1e-5)
    assert here['box_loss'].item() == pytest.approx(here['reg_loss'].sum().item(), rel=1e-5) and here['box_loss'].requires_grad
