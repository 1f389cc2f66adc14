"""What PISA adds to a training step at the paper's size, and to its memory: `python tests/bench/step.py [DETECTOR...] [--record]`.

ResNet-50 with two images of 800 x 1333, SSD300 with eight; 80 classes, ten objects an image; CPU, one thread. A whole step is long and
varies too much to show a difference of one percent. But the methods differ only in the losses of one head. So this part is timed, forward
and backward, on given features, with all methods in turn. Its difference from the baseline is divided by the time of a whole step of the baseline.
`mmdet` is mmdet's own PISA head. In Faster and Mask R-CNN it needs `ScoreHLRSampler`, so its extra forward pass is included. All methods use the
RoIAlign of `pisa.lab.roi_align`. Peak memory is the largest amount that torch allocates during a whole step."""
import contextlib
import json
import os
import subprocess
import sys
import time
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
import pisa.lab.detectors
from pisa.lab.experiments import prime_settings
from record import paired, report, words
from samplers import SCALES, scene

DETECTORS = {'faster_rcnn': ('r50', 2, (800, 1333), 5), 'mask_rcnn': ('r50', 2, (800, 1333), 5), 'retinanet': ('r50', 2, (800, 1333), 9), 'ssd300': ('vgg16', 8, (300, 300), 15)}
PAPER = {'faster_rcnn': 1.015, 'mask_rcnn': 1.025, 'retinanet': 1.093, 'ssd300': 1.121}  # Table 1 (v1)


def config(detector, method):
    "mmdet's config of a detector with a method; 'mmdet' is PISA with mmdet's own heads"
    prime = {} if method == 'baseline' else prime_settings('pisa', 'released' if method == 'mmdet' else 'v1')
    cfg = pisa.lab.detectors.model(detector, 'paper', 80, DETECTORS[detector][0], None, prime)
    return ConfigDict(pisa.lab.detectors.released(cfg) if method == 'mmdet' else cfg)


def samples(images, size, per_image=10):
    g = torch.Generator().manual_seed(0)
    out = []
    for _ in range(images):
        side = min(size) * (0.05 + 0.5 * torch.rand(per_image, 1, generator=g))
        corner = torch.rand(per_image, 2, generator=g) * (torch.tensor(size[::-1]) - side)
        meta = dict(img_shape=size, ori_shape=size, batch_input_shape=size, pad_shape=size, scale_factor=(1., 1.), img_id=0, img_path='')
        gts = InstanceData(bboxes=torch.cat([corner, corner + side], 1), labels=torch.randint(80, (per_image,), generator=g))
        out.append(DetDataSample(metainfo=meta, gt_instances=gts, ignored_instances=InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())))
    return out


def with_masks(data):
    "The same samples, each object with its box as its mask"
    for d in data:
        boxes, (h, w) = d.gt_instances.bboxes.int().tolist(), d.metainfo['img_shape']
        masks = np.zeros((len(boxes), h, w), np.uint8)
        for m, (x1, y1, x2, y2) in zip(masks, boxes): m[y1:y2, x1:x2] = 1
        d.gt_instances.masks = BitmapMasks(masks, h, w)
    return data


def build(detector, method):
    torch.manual_seed(0)
    with contextlib.redirect_stdout(None): return MODELS.build(config(detector, method)).train()


def losses_of_head(detector, models):
    "For each method the part in which they differ, as a function"
    _, images, size, _ = DETECTORS[detector]
    if detector in ('faster_rcnn', 'mask_rcnn'):
        x, proposals, data = scene('paper', *SCALES['paper'][:4])
        if detector == 'mask_rcnn': with_masks(data)
        def run(head):
            feats = tuple(level.detach().requires_grad_() for level in x)
            torch.manual_seed(0)  # the same random sample
            out = head.loss(feats, [InstanceData(bboxes=p.clone()) for p in proposals], data)
            sum(v for k, v in out.items() if 'loss' in k).backward()
        return {k: lambda h=m.roi_head: run(h) for k, m in models.items()}
    data, some = samples(images, size), next(iter(models.values()))
    with torch.no_grad(): out = some.bbox_head(some.extract_feat(torch.randn(images, 3, *(-(-s // 32) * 32 if s > 300 else s for s in size))))
    gts, metas = [d.gt_instances for d in data], [d.metainfo for d in data]
    def run(head):
        preds = [[p.detach().requires_grad_() for p in part] for part in out]
        found = head.loss_by_feat(*preds, gts, metas)
        sum(sum(v) if isinstance(v, list) else v for v in found.values()).backward()
    return {k: lambda h=m.bbox_head: run(h) for k, m in models.items()}


def peak(f):
    "The most bytes that a call held at once, beyond what there was before it"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof: f()
    changes = sorted((e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name() == '[memory]')
    return int(np.cumsum([n for _, n in changes]).max())


def whole(detector, method):
    "Seconds of whole steps, and the peak of their memory; runs in a process of its own"
    _, images, size, _ = DETECTORS[detector]
    model, data = build(detector, method), samples(images, size)
    if detector == 'mask_rcnn': with_masks(data)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    def step():
        start = time.process_time()
        x = torch.randn(images, 3, *(-(-s // 32) * 32 if s > 300 else s for s in size))
        loss, _ = model.parse_losses(model.loss(x, data))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start
    seconds = min(step(), step())
    momentum = [t for s in optimizer.state.values() for t in s.values()]
    return dict(seconds=seconds, bytes=peak(step) + sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *momentum)))


def bench(detector):
    methods = ('baseline', 'pisa', 'mmdet')
    alone = [json.loads(subprocess.run([sys.executable, __file__, '--whole', detector, m], capture_output=True, text=True, check=True).stdout.splitlines()[-1]) for m in methods]
    models = {m: build(detector, m) for m in methods}
    seconds = paired(losses_of_head(detector, models), DETECTORS[detector][3])
    step = alone[0]['seconds']
    ratio = 1 + np.quantile(seconds - seconds[:, :1], [0.5, 0.25, 0.75], axis=0) / step
    rows = [dict(method=m, losses_ms=1000 * float(np.median(s)), step_ratio=r[0], low=r[1], high=r[2], memory_ratio=a['bytes'] / alone[0]['bytes'])
            for m, s, r, a in zip(methods, seconds.T, ratio.T.tolist(), alone)]
    report('step', f'{detector}: a training step and its memory, over the baseline', rows, images=DETECTORS[detector][1], size='x'.join(map(str, DETECTORS[detector][2])),
           baseline_step_s=round(step, 2), published=PAPER[detector])


if __name__ == '__main__':
    register_all_modules()
    if '--whole' in sys.argv: print(json.dumps(whole(*sys.argv[-2:])))
    else:
        for detector in words() or DETECTORS: bench(detector)
