"""What an extra of settings.ini brings is enough for its modules, in an environment made of that extra alone, and the lowest versions that are
claimed work.

An environment is a folder with the distributions that the extra requires, directly or not, linked from the environment of the tests,
and the package as pip installs it. So nothing is downloaded, but for the lowest versions (`make slow`)."""
import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
METHOD, MMDET, LAB = ([f'{folder}.{f.stem}'.strip('.') for f in sorted(ROOT.glob(f'pisa/{folder}/[a-z]*.py'))] for folder in ('', 'mmdet', 'lab'))
TORCHVISION = METHOD
METHOD = [name for name in METHOD if name != 'torchvision']
MODULES = {'': METHOD, 'torchvision': TORCHVISION, 'mmdet': [*TORCHVISION, 'mmdet', *MMDET], 'lab': [*TORCHVISION, 'mmdet', *MMDET, *LAB]}
USE = '''
import torch
from pisa.carl import carl_loss
from pisa.hlr import iou_hlr
from pisa.isr import isr_weights
iou, gt, label, loss = torch.rand(6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1]), torch.rand(6)
assert sorted(iou_hlr(iou, gt, label).tolist()) == [0, 0, 1, 1, 2, 3]
assert abs((isr_weights(iou, gt, label, loss)*loss).sum() - loss.sum()) < 1e-5
assert carl_loss(torch.rand(6), loss).shape == (6,)
'''


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "The package as `pip install --no-deps .` installs it, from a copy: building leaves files behind"
    source, site = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md'): shutil.copy(ROOT/name, source)
    shutil.copytree(ROOT/'pisa', source/'pisa', ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--target', site, source], check=True)
    return site


def requires(site, extra):
    "The requirements of the installed package with an extra"
    dist, = metadata.distributions(path=[str(site)])
    return [Requirement(line.partition(';')[0]) for line in dist.requires if (marker := Requirement(line).marker) is None or marker.evaluate({'extra': extra})]


def closure(requirements):
    "The distributions that requirements need, directly or not, of those installed here"
    found, todo = {}, list(requirements)
    while todo:
        r = todo.pop()
        name = canonicalize_name(r.name)
        extras = r.extras or {''}
        if r.marker is not None and not any(r.marker.evaluate({'extra': e}) for e in extras): continue
        if name in found and extras <= found[name][1]: continue
        dist = metadata.distribution(name)
        assert r.specifier.contains(dist.version, prereleases=True), f'{r} is asked for, {dist.version} is here'
        found[name] = dist, extras | found.get(name, (0, set()))[1]
        for line in dist.requires or ():
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({'extra': e}) for e in extras):
                inner.marker = None
                todo.append(inner)
    return [dist for dist, _ in found.values()]


def environment(folder, installed, extra):
    "A site folder with the package, and links to what the extra needs"
    shutil.copytree(installed, folder)
    for dist in closure(requires(installed, extra)):
        for top in {Path(f).parts[0] for f in dist.files} - {'..', '__pycache__'}:
            source, link = Path(dist.locate_file(top)), folder/top
            if not source.exists() or link.is_symlink() or link.exists(): continue  # folders that several share
            link.symlink_to(source)
    return folder


def run(folder, code):
    "Run code in an interpreter that sees nothing but its standard library and a site folder"
    return subprocess.run([sys.executable, '-I', '-S', '-c', f'import sys; sys.path.append({str(folder)!r})\n{code}'],
                          cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize('extra', MODULES)
def test_modules_of_an_extra_import_with_it_alone(extra, installed, tmp_path):
    if extra in ('mmdet', 'lab'): pytest.importorskip('mmdet')
    site = environment(tmp_path/'site', installed, extra)
    p = run(site, ''.join(f'import pisa.{name}\n' for name in MODULES[extra]) + USE)
    assert p.returncode == 0, p.stderr[-2000:]


def test_an_extra_does_not_hold_what_only_a_larger_one_needs(installed, tmp_path):
    "The environments are as small as they claim: what an extra lacks is missing there"
    site = environment(tmp_path/'site', installed, '')
    for name in ('torchvision', 'mmdet', 'lab.tables'):
        p = run(site, f'import pisa.{name}')
        assert p.returncode and 'ModuleNotFoundError' in p.stderr, name


@pytest.mark.slow
def test_lowest_versions(installed, tmp_path):
    "Real installations with pip: the lowest Python and torch that are claimed pass the tests of IoU-HLR, ISR and CARL"
    dist, = metadata.distributions(path=[str(installed)])
    lowest = dist.metadata['Requires-Python'].removeprefix('>=')
    python = shutil.which(f'python{lowest}')
    if not python: pytest.skip(f'no python{lowest} here')
    torch, = (r for r in requires(installed, '') if r.name == 'torch')
    version, = (s.version for s in torch.specifier if s.operator == '>=')
    subprocess.run([python, '-m', 'venv', tmp_path/'env'], check=True)
    python = tmp_path/'env/bin/python'
    subprocess.run([python, '-m', 'pip', 'install', '-q', f'torch=={version}', 'numpy<2', 'pytest'], check=True)  # which it was built with
    # fake tensors of a GPU and whole graphs are newer
    p = subprocess.run([python, '-m', 'pytest', '-p', 'no:cacheprovider', '-k', 'not fake and not compiles',
                        *(str(ROOT/f'tests/test_{name}.py') for name in ('hlr', 'isr', 'carl'))],
                       cwd=installed, env={'PATH': '/usr/bin', 'PYTHONPATH': str(installed)}, capture_output=True, text=True)
    assert p.returncode == 0 and ' passed' in p.stdout, p.stdout[-3000:]


def test_an_mmcv_without_operators_is_named(tmp_path):
    "As pip builds it where it does not see torch"
    pytest.importorskip('mmdet')
    code = "import sys; sys.modules['mmcv._ext'] = None\ntry: import pisa.mmdet\nexcept ImportError as e: print(e)"
    p = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert p.stdout.startswith('mmcv was built without its operators') and p.stdout.count('\n') == 1, p.stdout + p.stderr
