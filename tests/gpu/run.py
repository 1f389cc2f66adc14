"""What needs a GPU, part by part, into one JSON; `tests/gpu/run.sh` starts it.

Each part runs in a process of its own with a time limit, so a part that fails or hangs does not stop the others. What needs something that is
not there is skipped, with the reason."""
import argparse
import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou, masks_to_boxes
from pisa.carl import carl_loss
from pisa.isr import isr_weights
from pisa.lab.files import write_json
from pisa.lab.shapes import CLASSES, render
from pisa.prime import ISR, Positives, prime_weights
from pisa.torchvision import prime

HERE = Path(__file__).parent
TINY = os.environ.get('PISA_GPU') == 'cpu'
DEVICE = 'cpu' if TINY else 'cuda'
TRAINING_SECONDS = 170  # seconds for the trainings
FEW = dict(box_batch_size_per_image=8, rpn_post_nms_top_n_train=16, rpn_post_nms_top_n_test=16) if TINY else {}  # RoIs of an R-CNN


class Skip(Exception): "Its text says what is not there"


def milliseconds(function):
    "Of one call, by CUDA events"
    if TINY:
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def quartiles(values):
    values = torch.tensor(values, dtype=torch.float64)
    return dict(zip(('median', 'low', 'high'), values.quantile(torch.tensor([.5, .25, .75], dtype=torch.float64)).tolist()))


def checks():
    "The tests beside this file"
    import pytest
    rows = []

    class Keep:
        def pytest_runtest_logreport(self, report):
            if report.when != 'call' and report.passed: return
            why = report.longrepr[2] if report.skipped else str(report.longrepr)[-300:] if report.failed else ''
            rows.append(dict(test=report.nodeid.split('::')[1], outcome=report.outcome, why=why))
    pytest.main(['-q', '-p', 'no:cacheprovider', str(HERE/'test_gpu.py')], plugins=[Keep()])
    if failed := [r['test'] for r in rows if r['outcome'] == 'failed']: print('failed:', *failed)
    return rows


def losses(iou, gt, label, loss, prob, reg_loss): return isr_weights(iou, gt, label, loss), carl_loss(prob, reg_loss)


def case(positives):
    g = torch.Generator().manual_seed(0)
    gt = torch.randint(positives//10 + 1, (positives,), generator=g)
    each = [torch.rand(positives, generator=g) for _ in range(4)]
    return [x.to(DEVICE) for x in (each[0], gt, gt % 80, *each[1:])]


def as_graph(function, args):
    if TINY: raise Skip('a CUDA graph needs a GPU')
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3): function(*args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): function(*args)
    return graph.replay


def mmdets(positives):
    "ISR of mmdet on a mini-batch of 8 images"
    if not importlib.util.find_spec('mmdet'): raise Skip('mmdet is not here')
    sys.path.insert(0, str(HERE.parent/'bench'))
    import core
    return core.released(core.scene(positives, 8, 20, 80, device=DEVICE))


def kernels():
    "ISR and CARL together, ms a call"
    rows, rounds = [], 3 if TINY else 50
    for positives in (128, 512) if TINY else (128, 512, 4096, 20_000):
        args = case(positives)
        compiled = torch.compile(losses, fullgraph=True, dynamic=False)
        ways = {'eager': lambda: lambda: losses(*args), 'compiled': lambda: lambda: compiled(*args),
                'CUDA graph': lambda: as_graph(losses, args), 'mmdet, ISR alone': lambda: mmdets(positives)}
        for way, make in ways.items():
            try:
                call = make()
                for _ in range(3): call()
                rows.append(dict(way=way, positives=positives, **quartiles([milliseconds(call) for _ in range(rounds)])))
            except Skip as e: rows.append(dict(way=way, positives=positives, skipped=str(e)))
            except Exception as e: rows.append(dict(way=way, positives=positives, failed=f'{type(e).__name__}: {e}'[:300]))  # no compiler, say
    return rows


def scene(images, height, width, classes, objects=8, seed=0):
    "Random images and ground truths"
    g, targets = torch.Generator().manual_seed(seed), []
    for _ in range(images):
        corner = torch.rand(objects, 2, generator=g) * torch.tensor([width, height]) * .6
        boxes = torch.cat([corner, corner + (.05 + .3*torch.rand(objects, 2, generator=g)) * torch.tensor([width, height])], 1)
        targets.append(dict(boxes=boxes.to(DEVICE), labels=torch.randint(1, classes, (objects,), generator=g).to(DEVICE)))
    return [torch.rand(3, height, width, generator=g).to(DEVICE) for _ in range(images)], targets


def stepper(model, data, autocast):
    optimizer = torch.optim.SGD(model.parameters(), 1e-5, momentum=0.9)
    def step():
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast): loss = sum(model(*data).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step


def steps():
    "A training step at the paper's size, PISA over baseline, in turn"
    none, size = dict(weights=None, weights_backbone=None, num_classes=91), (48, 64) if TINY else (800, 1333)
    small = dict(min_size=48, max_size=64) if TINY else {}
    rows, rounds = [], 1 if TINY else 50
    for name, images, (height, width), more in (('fasterrcnn_resnet50_fpn', 2, size, small | FEW), ('fasterrcnn_resnet50_fpn', 8, size, small),
                                                ('retinanet_resnet50_fpn', 2, size, small), ('ssd300_vgg16', 8, (300, 300), {})):
        if TINY and images == 8 and not name.startswith('ssd'): continue
        if TINY: images = 1
        data = scene(images, height, width, 91)
        for precision in ('float32', 'TF32', 'bfloat16') if name.startswith('faster') else ('TF32',):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != 'float32'
            torch.manual_seed(0)
            plain = getattr(detection, name)(**none, **more).to(DEVICE).train()
            two = [stepper(model, data, precision == 'bfloat16') for model in (plain, prime(copy.deepcopy(plain)))]
            for step in two*(1 if TINY else 3): step()
            times = [[milliseconds(step) for step in two] for _ in range(rounds)]
            about = dict(detector=name, images=images, precision=precision, steps=rounds)
            rows.append(about | dict(ratio=quartiles([b/a for a, b in times]), baseline_ms=quartiles([a for a, _ in times])))
            print(rows[-1], flush=True)
    return rows


def average_precision(found, truth, classes):
    """COCO's AP of boxes, in percent, from 0.5 to 0.95, all sizes; it expects at most 100 detections an image.

    `found`, `truth`: a dict an image, `boxes`, `labels`, and `scores` of what was found."""
    ious, grid, aps = torch.linspace(.5, .95, 10), torch.arange(101, dtype=torch.float64)*.01, []  # a recall of 0.2 is on the grid
    for c in range(1, classes + 1):
        scores, hits, objects = [], [], 0
        for f, t in zip(found, truth):
            own, boxes = f['labels'] == c, t['boxes'][t['labels'] == c]
            order = f['scores'][own].sort(descending=True, stable=True)[1]
            overlap, free = box_iou(f['boxes'][own][order], boxes), torch.ones(len(ious), len(boxes), dtype=torch.bool)
            for score, row in zip(f['scores'][own][order], overlap):
                hit = torch.zeros(len(ious), dtype=torch.bool)
                for k, iou in enumerate(ious):
                    open_ = torch.where(free[k], row, row.new_tensor(-1))
                    if len(boxes) and open_.max() >= iou: hit[k], free[k, open_.argmax()] = True, False
                scores.append(score)
                hits.append(hit)
            objects += len(boxes)
        if not objects: continue
        if not scores: aps.append(torch.zeros(len(ious))); continue
        hit = torch.stack(hits)[torch.stack(scores).sort(descending=True, stable=True)[1]].double()
        recall, precision = hit.cumsum(0)/objects, hit.cumsum(0)/torch.arange(1, len(hit) + 1)[:, None]
        precision = precision.flip(0).cummax(0)[0].flip(0)
        at = torch.searchsorted(recall.T.contiguous(), grid.expand(len(ious), -1).contiguous())
        padded = torch.cat([precision, precision.new_zeros(1, len(ious))])
        aps.append(padded.T.gather(1, at).mean(1))
    ap = 100*torch.stack([a.double() for a in aps]).mean(0)
    return dict(AP=ap.mean().item(), AP50=ap[0].item(), AP75=ap[5].item())


def shapes(split, images):
    "Rendered images, as bytes on the device, and ground truths"
    rendered, targets = [render(split, i) for i in range(images)], []
    for _, labels, masks in rendered:
        boxes = masks_to_boxes(torch.from_numpy(masks)) + torch.tensor([0, 0, 1, 1])
        targets.append(dict(boxes=boxes.float().to(DEVICE), labels=torch.as_tensor(labels).long().to(DEVICE) + 1))
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, *_ in rendered]).to(DEVICE), targets


def train(method, seed, data, epochs, batch=8):
    pixels, targets = data
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(backbone_name='resnet18', weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d)
    side = 64 if TINY else 256
    anchors = detection.anchor_utils.AnchorGenerator(tuple((side*s/10.7,) for s in (1, 2, 4, 8, 16)), ((.5, 1., 2.),)*5)
    model = detection.FasterRCNN(backbone, len(CLASSES) + 1, min_size=side, max_size=side, rpn_anchor_generator=anchors, **FEW).to(DEVICE).train()
    if method == 'pisa': prime(model)
    total = epochs*(len(pixels)//batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=total)
    for _ in range(epochs):
        order = torch.randperm(len(pixels))
        for rows in order[:len(order)//batch*batch].view(-1, batch):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=not TINY):
                loss = sum(model([pixels[i]/255 for i in rows], [targets[i] for i in rows]).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10)
            optimizer.step()
            schedule.step()
    return model.eval()


def training():
    "Faster R-CNN on shapes, resized to 256 pixels, baseline and PISA, as many seeds as there is time for"
    images, epochs = (16, 1) if TINY else (2000, 8)
    data, (pixels, truth) = shapes('train', images), shapes('val', images//4)
    truth = [{k: v.cpu() for k, v in t.items()} for t in truth]
    rows, start, seed = [], time.time(), 0
    while not rows or (not TINY and (time.time() - start)*(seed + 1)/seed < TRAINING_SECONDS):
        for method in ('baseline', 'pisa'):
            begin = time.time()
            model = train(method, seed, data, epochs)
            seconds = time.time() - begin
            with torch.no_grad(): found = [{k: v.cpu() for k, v in model([p/255])[0].items()} for p in pixels]
            rows.append(dict(method=method, seed=seed, seconds=seconds, **average_precision(found, truth, len(CLASSES))))
            print(rows[-1], flush=True)
        seed += 1
    return rows


def process(rank, folder):
    "One of two that train together"
    torch.distributed.init_process_group('gloo' if TINY else 'nccl', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    device = 'cpu' if TINY else f'cuda:{rank}'
    g = torch.Generator().manual_seed(0)
    n, f = 60, lambda *shape: torch.rand(*shape, generator=g)
    gt = torch.randint(6, (n,), generator=g)
    corner = f(n, 2)
    box, gt_box = (torch.cat([corner, corner + .5 + f(n, 2)], 1) for _ in range(2))
    pos = dict(loss=f(n), prob=f(n), reg_loss=f(n), box=box, prior=box, gt_box=gt_box, gt=gt, label=gt % 3, image=gt//2, weight=f(n))
    own = Positives(**{k: v[rank::2].to(device) for k, v in pos.items()})
    together = prime_weights(own, ISR(scope='world')).cpu()
    # ids of ground truths are of one process: an object of both has two halves, as two objects
    halves = Positives(**pos | {'gt': gt + 6*(torch.arange(n) % 2)})
    torch.testing.assert_close(together, prime_weights(halves, ISR())[rank::2], rtol=1e-5, atol=1e-6)
    torch.manual_seed(rank)
    model = prime(detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64))
    model = nn.parallel.DistributedDataParallel(model.to(device).train(), None if TINY else [rank])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    images, targets = scene(2, 64, 64, 4, seed=rank)
    for _ in range(3):
        loss = sum(model([x.to(device) for x in images], [{k: v.to(device) for k, v in t.items()} for t in targets]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sums = torch.stack([p.detach().double().sum() for p in model.parameters()])
    other = sums.clone()
    torch.distributed.broadcast(other, 0)
    assert torch.isfinite(sums).all() and torch.equal(sums, other), 'the two processes have other weights'


def two():
    "ISR over two processes equals that of one, where an object counts once for each process; a training keeps the weights of both equal"
    if not TINY and torch.cuda.device_count() < 2: raise Skip('there are no two GPUs')
    with tempfile.TemporaryDirectory() as folder: torch.multiprocessing.spawn(process, (folder,), nprocs=2)
    return [dict(backend='gloo' if TINY else 'nccl', equal=True)]


PARTS = {'checks': (checks, 90), 'kernels': (kernels, 90), 'steps': (steps, 140), 'training': (training, 220), 'two': (two, 60)}


def one_part(name):
    "What a part found, as its process prints it"
    try: return {'rows': PARTS[name][0]()}
    except Skip as e: return {'skipped': str(e)}
    except Exception as e:
        traceback.print_exc()
        return {'failed': f'{type(e).__name__}: {e}'[:500]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('parts', nargs='*', help=f'of {", ".join(PARTS)}; all if none is given')
    parser.add_argument('--out', type=Path, help='runs/records/bench/gpu.json if not given; where it exists, the other parts stay in it')
    parser.add_argument('--tiny', action='store_true', help='on the CPU, everything tiny')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := {*given.parts} - {*PARTS}: parser.error(f'{", ".join(unknown)} is no part; choose from {", ".join(PARTS)}')
    if given.child:
        given.out.write_text(json.dumps(one_part(given.child)))
        return
    if given.tiny and not given.out: parser.error('--tiny needs --out FILE: what it measures is no record')
    given.out = given.out or HERE.parents[1]/'runs/records/bench/gpu.json'
    if not given.tiny and not torch.cuda.is_available(): sys.exit('torch sees no GPU here; --tiny tries the script on the CPU')
    env = dict(os.environ, PISA_GPU='cpu' if given.tiny else 'cuda')
    gpu = None if given.tiny else torch.cuda.get_device_name()
    result = {'machine': {'gpu': gpu, 'gpus': torch.cuda.device_count(), 'cuda': torch.version.cuda, 'tiny': given.tiny},
              'versions': {'torch': torch.__version__, 'torchvision': torchvision.__version__, 'python': sys.version.split()[0]}, 'parts': {}}
    if given.out.exists(): result['parts'] = json.loads(given.out.read_text())['parts']
    for name in given.parts or PARTS:
        start = time.time()
        with tempfile.TemporaryDirectory() as tmp:
            file = Path(tmp)/'part.json'
            try:
                subprocess.run([sys.executable, __file__, '--child', name, '--out', str(file)], env=env, timeout=None if given.tiny else PARTS[name][1])
                part = json.loads(file.read_text()) if file.exists() else {'failed': 'its process ended without a result'}
            except subprocess.TimeoutExpired: part = {'failed': f'it took more than {PARTS[name][1]} seconds'}
        result['parts'][name] = part | {'seconds': round(time.time() - start, 1)}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, result)  # after each part
        print(f"{name}: {part.get('skipped') or part.get('failed') or 'done'}, {result['parts'][name]['seconds']} s", flush=True)
    sys.exit(any('failed' in p or any(r.get('outcome') == 'failed' for r in p.get('rows', ())) for p in result['parts'].values()))


if __name__ == '__main__': main()
