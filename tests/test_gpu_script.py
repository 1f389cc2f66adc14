"tests/gpu/run.sh on the CPU, everything tiny; its AP against pycocotools"
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch):
    "The script as a module"
    monkeypatch.setenv('PISA_GPU', 'cpu')
    spec = importlib.util.spec_from_file_location('gpu_run', ROOT/'tests/gpu/run.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*args):
    return subprocess.run([ROOT/'tests/gpu/run.sh', *args], env=dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1'), capture_output=True, text=True)


def test_all_parts_on_the_cpu(tmp_path):
    p = run('--tiny', '--out', str(tmp_path/'gpu.json'))
    assert p.returncode == 0, (p.stdout + p.stderr)[-3000:]
    result = json.loads((tmp_path/'gpu.json').read_text())
    parts = {name: part['rows'] for name, part in result['parts'].items()}
    assert [*parts] == ['checks', 'kernels', 'steps', 'training', 'two'] and result['machine']['tiny']
    outcomes = {r['test'].split('[')[0]: r['outcome'] for r in parts['checks']}
    assert outcomes['test_equal_to_the_cpu'] == outcomes['test_compiled_as_one_graph'] == 'passed'
    assert all(r['why'] for r in parts['checks'] if r['outcome'] == 'skipped')
    ways = {r['way']: r for r in parts['kernels']}
    assert ways['eager']['median'] > 0 and ways['compiled']['median'] > 0 and ways['CUDA graph']['skipped'] == 'a CUDA graph needs a GPU'
    assert {r['detector'] for r in parts['steps']} == {'fasterrcnn_resnet50_fpn', 'retinanet_resnet50_fpn', 'ssd300_vgg16'}
    assert {r['precision'] for r in parts['steps']} == {'float32', 'TF32', 'bfloat16'}
    assert [(r['method'], r['seed']) for r in parts['training']] == [('baseline', 0), ('pisa', 0)]
    assert parts['two'] == [{'backend': 'gloo', 'equal': True}]


def test_a_part_that_fails_does_not_stop_the_rest(script, monkeypatch, tmp_path, capsys):
    def broken(): raise RuntimeError('out of memory')
    monkeypatch.setitem(script.PARTS, 'kernels', (broken, 9))
    assert script.one_part('kernels') == {'failed': 'RuntimeError: out of memory'}
    # the processes of the parts, of which the first ends without a result
    calls = []
    def process(command, **_):
        name, file = command[3], Path(command[5])
        calls.append(name)
        if name == 'steps': raise subprocess.TimeoutExpired(command, 9)
        if name == 'two': file.write_text(json.dumps({'rows': []}))
    monkeypatch.setattr(script.subprocess, 'run', process)
    monkeypatch.setattr(sys, 'argv', ['run.py', 'kernels', 'steps', 'two', '--tiny', '--out', str(tmp_path/'gpu.json')])
    with pytest.raises(SystemExit) as stop: script.main()
    parts = json.loads((tmp_path/'gpu.json').read_text())['parts']
    assert stop.value.code and calls == ['kernels', 'steps', 'two']
    assert [parts[k].get('failed') for k in calls] == ['its process ended without a result', 'it took more than 140 seconds', None]


def test_one_line_where_there_is_no_gpu_or_no_such_part():
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    p = run()
    assert p.returncode and p.stderr.strip() == 'torch sees no GPU here; --tiny tries the script on the CPU'
    p = run('--tiny')
    assert p.returncode and '--tiny needs --out FILE' in p.stderr
    p = run('kernel')
    assert p.returncode and 'kernel is no part; choose from checks, kernels, steps, training, two' in p.stderr


@pytest.mark.parametrize('seed', range(4))
def test_average_precision_is_that_of_pycocotools(script, seed):
    "Made-up detections, some of them near their objects, two with the same score; an image and a class without objects, an image without detections"
    pytest.importorskip('pycocotools')
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.rand(n, 2, generator=g)*80
    found, truth = [], []
    for image in range(12):
        n = 0 if image == 3 else int(torch.randint(1, 6, (1,), generator=g))
        corner = draw(n).round()
        boxes, labels = torch.cat([corner, corner + 5 + draw(n).round()], 1), torch.randint(1, 4, (n,), generator=g)
        near = boxes.repeat(3, 1) + torch.randn(3*n, 4, generator=g)*3
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        far = draw(4)
        all_boxes = torch.cat([near, torch.cat([far, far + 20], 1)])[:0 if image == 5 else None]
        scores = torch.rand(len(all_boxes), generator=g)
        if image == 1: scores[:2] = 0.5
        near_labels = torch.cat([labels.repeat(3), torch.randint(1, 5, (4,), generator=g)])[:len(all_boxes)]
        truth.append(dict(boxes=boxes, labels=labels))
        found.append(dict(boxes=all_boxes, labels=near_labels, scores=scores))
    xywh = lambda b: torch.cat([b[:2], b[2:] - b[:2]]).tolist()
    coco = COCO()
    rows = [(i, b, int(c)) for i, t in enumerate(truth) for b, c in zip(t['boxes'], t['labels'])]
    coco.dataset = dict(info={}, images=[dict(id=i) for i in range(12)], categories=[dict(id=c) for c in range(1, 5)],
                        annotations=[dict(id=k + 1, image_id=i, bbox=xywh(b), area=1., category_id=c, iscrowd=0) for k, (i, b, c) in enumerate(rows)])
    with contextlib.redirect_stdout(None):
        coco.createIndex()
        results = [dict(image_id=i, bbox=xywh(b), score=float(s), category_id=int(c))
                   for i, f in enumerate(found) for b, s, c in zip(f['boxes'], f['scores'], f['labels'])]
        judge = COCOeval(coco, coco.loadRes(results), 'bbox')
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ours = script.average_precision(found, truth, 4)
    assert 5 < ours['AP'] < 95  # neither nothing nor all is found
    assert [ours['AP'], ours['AP50'], ours['AP75']] == pytest.approx((100*judge.stats[:3]).tolist(), abs=1e-6)
