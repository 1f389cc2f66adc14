"What must hold of the project as a whole: the order of the notebooks, what the core needs, how it installs"
import ast
import json
import re
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBERED = sorted((ROOT / 'nbs').rglob('[0-9][0-9]_*.ipynb'), key=lambda p: p.name)


def sources(notebook, kind='code'):
    return [''.join(c['source']) for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == kind]


def exported(notebook):
    "The module that a notebook exports"
    return re.search(r'#\| default_exp ([\w.]+)', '\n'.join(sources(notebook)))[1]


def imported(cell):
    "The modules that a cell imports, wherever in it"
    for node in ast.walk(ast.parse(re.sub(r'^[%!].*$', '', cell, flags=re.M))):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom): yield from (node.module, *(f'{node.module}.{a.name}' for a in node.names))


def test_imports_point_to_lower_numbers_and_shelves_only():
    number = {f'pisa.{exported(p)}': int(p.stem[:2]) for p in NUMBERED}
    number['pisa.mmdet'] = max(n for name, n in number.items() if name.startswith('pisa.mmdet.'))  # which registers all of them
    assert len(number) == len(NUMBERED) + 1 == len(set(number.values())) + 1
    shelf = lambda p: {'nbs': 1, 'mmdet': 2, 'lab': 3}[p.parent.name]
    assert [shelf(p) for p in NUMBERED] == sorted(shelf(p) for p in NUMBERED)
    for notebook in NUMBERED:
        for name in {name for cell in sources(notebook) for name in imported(cell) if name in number}:
            # to play with and to train on, not for what is exported
            if (notebook.stem, name) in {('10_hlr', 'pisa.lab.explorer'), ('14_torchvision', 'pisa.lab.data')}: continue
            assert number[name] < int(notebook.stem[:2]), f'{notebook.name} imports {name}'


def test_exported_code_is_easy_to_read():
    "Lines, functions and cells of a size that one can take in at once; and private names stay in their module"
    for notebook in NUMBERED:
        for cell in (c for c in sources(notebook) if re.match(r'#\| *export', c)):
            lines = cell.splitlines()
            assert max(map(len, lines)) <= 120 and len(lines) <= 61, f'{notebook.name}: {lines[1]}'
            for node in ast.walk(ast.parse(cell)):
                if isinstance(node, ast.FunctionDef): assert node.end_lineno - node.lineno < 40, f'{notebook.name}: {node.name}'
                if isinstance(node, ast.ImportFrom) and node.module.startswith('pisa'):
                    assert not [a.name for a in node.names if a.name.startswith('_')], f'{notebook.name}: {node.module}'


def test_the_method_needs_torch_alone():
    for notebook in (p for p in NUMBERED if p.parent.name == 'nbs'):
        allowed = {*sys.stdlib_module_names, 'torch', 'pisa', *(['torchvision'] if 'torchvision' in notebook.stem else [])}
        for cell in sources(notebook):
            if re.match(r'#\| *export', cell): assert {name.split('.')[0] for name in imported(cell)} <= allowed, notebook.name


def test_tables_and_figures_need_no_mmdet(tmp_path):
    code = """
import sys
for name in ('mmdet', 'mmcv', 'mmengine'): sys.modules[name] = None  # an import of it fails
from pisa.lab import claims, figures, tables
tables.write(3, tables.read_runs(), sys.argv[1])
claims.claims_markdown(claims.judged_claims())
figures.save(figures.draw(3), 'fig3', sys.argv[1])
"""
    p = subprocess.run([sys.executable, '-c', code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-2000:]
    assert {f.name for f in tmp_path.iterdir()} == {f'table3.{k}' for k in ('md', 'csv', 'tex')} | {f'fig3.{k}' for k in ('png', 'pdf', 'json')}


@pytest.mark.parametrize('notebook', sorted(ROOT.glob('nbs/**/*.ipynb')), ids=lambda p: p.stem)
def test_opens_with_a_title_and_a_subtitle(notebook):
    first = sources(notebook, 'markdown')[0].splitlines()
    assert first[0].startswith('# ') and first[2].startswith('> '), first[:3]


def test_no_api_that_only_the_continuations_have():
    "What the heads import is there in the official mmdet 3.3.0 too: the names were looked up in it, once, and are listed here"
    official = {'mmdet.models.roi_heads': {'CascadeRoIHead', 'PISARoIHead', 'StandardRoIHead'}, 'mmdet.models.dense_heads': {'ATSSHead', 'AnchorHead', 'RetinaHead', 'SSDHead', 'PISASSDHead'}, 'mmdet.models.roi_heads.bbox_heads': {'BBoxHead'}, 'mmdet.models.roi_heads.mask_heads': {'FCNMaskHead'}, 'mmdet.models.roi_heads.roi_extractors': {'SingleRoIExtractor'}, 'mmdet.models.utils': {'multi_apply', 'unpack_gt_instances'}, 'mmdet.models.layers': {'multiclass_nms'}, 'mmdet.registry': {'DATASETS', 'MODELS', 'METRICS', 'TASK_UTILS'}, 'mmdet.models.task_modules.samplers': {'OHEMSampler', 'SamplingResult', 'ScoreHLRSampler'},
                'mmdet.structures': {'DetDataSample'}, 'mmdet.structures.bbox': {'bbox2roi', 'bbox_overlaps', 'cat_boxes', 'get_box_tensor'}, 'mmdet.utils': {'reduce_mean', 'register_all_modules'}}
    for notebook in NUMBERED:
        for cell in sources(notebook):
            if '#| export' not in cell: continue
            for module, names in re.findall(r'^from (mmdet[\w.]*) import (.+)$', cell, re.M):
                assert set(re.split(r', *', names)) <= official.get(module, set()), f'{notebook.name}: from {module} import {names}'


def test_the_tests_that_show_the_defects_of_the_released_code_are_there():
    table = '\n'.join(sources(ROOT/'nbs/mmdet/released.ipynb', 'markdown'))
    named = re.findall(r'`(test_\w+\.py)::(test_\w+)`', table)
    assert len(named) > 8
    for file, name in named: assert f'def {name}(' in (ROOT/'tests'/file).read_text(), f'{file}::{name}'


@pytest.mark.parametrize('head, base', [('PrimeRoIHead', 'faster_rcnn'), ('PrimeATSSHead', 'atss'), ('PrimeCascadeRoIHead', 'cascade_rcnn')])
def test_configs_in_the_prose_build_their_detectors(tmp_path, head, base):
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    prose = (ROOT / 'README.md').read_text() + '\n'.join(c for f in ROOT.glob('nbs/mmdet/2*.ipynb') for c in sources(f, 'markdown'))
    text = next(t for t in re.findall(r'```python\n(.*?)```', prose, re.S) if f"type='{head}'" in t)
    assert f"_base_ = 'mmdet::{base}/" in text
    (tmp_path / 'own.py').write_text(text)
    register_all_modules()
    model = MODELS.build(Config.fromfile(tmp_path / 'own.py').model)
    assert type(getattr(model, 'roi_head', None) or model.bbox_head).__name__ == head
    stages = model.train_cfg.get('rcnn', model.train_cfg)
    assert all(s.isr.gamma == 2 and s.carl.b == 0.1 for s in (stages if isinstance(stages, list) else [stages]))


def test_readme_is_short():
    assert len((ROOT/'README.md').read_text().splitlines()) <= 150


def test_committed_runs_are_complete():
    p = subprocess.run(['git', 'ls-files', 'runs'], cwd=ROOT, capture_output=True, text=True)
    if p.returncode: pytest.skip('not a git checkout')
    files = [Path(f) for f in p.stdout.split()]
    folders = {f.parent for f in files} - {Path('runs/records/bench'), Path('runs/records')}  # benches; the list of all runs
    assert folders and {f.parent for f in folders} == {Path('runs/records')}
    for folder in folders:
        names = {f.name for f in files if f.parent == folder}
        assert {'run.json', 'metrics.json', 'scalars.jsonl'} <= names <= {'run.json', 'metrics.json', 'scalars.jsonl', 'samples.npz'}, folder


ID = r'[a-z0-9_]+-[a-z]+-[a-z]+-s\d+-[0-9a-f]{8}\b'

def test_the_list_of_all_records_is_that_of_the_folder():
    "`make paper` writes it last, so that tables, figures and pages have seen these records too"
    listed = set(re.findall(ID, (ROOT/'runs/records/README.md').read_text()))
    assert listed == {f.parent.name for f in ROOT.glob('runs/records/*/run.json')}


def test_committed_tables_and_figures_are_of_committed_records():
    "What was rendered where somebody had runs of their own is not committed"
    files = [*ROOT.glob('figures/*.json'), *ROOT.glob('figures/*.md'), ROOT/'nbs/paper/index.ipynb', ROOT/'README.md']
    ids = {id for f in files for id in re.findall(ID, f.read_text()) if not id.endswith('-1a2b3c4d')}  # in examples of commands
    assert len(ids) > 50 and ids <= {f.name for f in (ROOT/'runs/records').iterdir()}
