"""What mining costs: one training step of an RoI head with each sampler, over the same step with random sampling.

`python tests/bench/samplers.py [mini] [paper] [--record]`. A step is assignment, sampling, forward, losses
and backward of `PrimeRoIHead`, on features and proposals that are made up. mmdet's samplers have mmdet's RoI extractor beside them. Every round runs all samplers once, and a ratio is taken within a round; time is CPU time of one thread."""
import time
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
import pisa.lab.roi_align, pisa.mmdet.two_stage
from pisa.lab.detectors import SIZES, box_head, roi_extractor
from record import against, report, words

register_all_modules()
SCALES = {  # images, classes, (width, height), objects an image, rounds
    'mini': (8, 8, (128, 128), 4, 25),
    'paper': (2, 80, (1333, 800), 7, 7),
}
ours = lambda pos, neg: dict(type='PrimeSampler', pos=pos, neg=neg)
SAMPLERS = {'PrimeSampler R / R': ours('R', 'R'), 'RandomSampler (mmdet)': dict(type='RandomSampler'),
            'PrimeSampler H* / R': ours('H*', 'R'), 'PrimeSampler R / H*': ours('R', 'H*'), 'PrimeSampler H / H': ours('H', 'H'),
            'PrimeSampler H* / H*': ours('H*', 'H*'), 'OHEMSampler (mmdet)': dict(type='OHEMSampler'),
            'PrimeSampler R / score_hlr': ours('R', 'score_hlr'), 'ScoreHLRSampler (mmdet)': dict(type='ScoreHLRSampler')}
FORWARD = 'the forward of all proposals alone'


def head(scale, classes, sampler, extractor):
    "The RoI head of a scale, its classifier scaled up so that scores differ and many negatives are above 0.05"
    s = SIZES[scale]
    torch.manual_seed(0)
    extractor = dict(roi_extractor(s, 7), type=extractor)
    cfg = ConfigDict(type='PrimeRoIHead', bbox_roi_extractor=extractor, bbox_head=box_head(s, classes), train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False),
        sampler=dict(num=s.rois, pos_fraction=0.25, add_gt_as_proposals=True, **sampler), pos_weight=-1, debug=False))
    h = MODELS.build(cfg)
    with torch.no_grad(): h.bbox_head.fc_cls.weight.normal_(0, 1)
    return h


def scene(scale, images, classes, size, objects):
    "Features of four levels, and proposals of which a third are around objects"
    s, (w, h) = SIZES[scale], size
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=g)
    x = tuple(torch.randn(images, s.channels, -(-h // st), -(-w // st), generator=g) for st in (4, 8, 16, 32))
    def boxes(n):
        wh = min(size) * (0.05 + 0.35*rand(n, 2)**2)
        xy = rand(n, 2) * (torch.tensor([w, h]) - wh)
        return torch.cat([xy, xy + wh], 1)
    proposals, samples = [], []
    for _ in range(images):
        gt = boxes(objects)
        near = gt.repeat(s.proposals // 3 // objects, 1)
        near = near + (rand(len(near), 4) - 0.5) * (near[:, 2:] - near[:, :2]).repeat(1, 2)
        proposals.append(torch.cat([near, boxes(s.proposals - len(near))]))
        gts = InstanceData(bboxes=gt, labels=torch.randint(classes, (objects,), generator=g))
        samples.append(DetDataSample(metainfo=dict(img_shape=(h, w)), gt_instances=gts))
    return x, proposals, samples


def step(h, x, proposals, samples):
    "CPU seconds of one training step"
    x = tuple(level.detach().requires_grad_() for level in x)  # as from a neck that is trained
    start = time.process_time()
    losses = h.loss(x, [InstanceData(bboxes=p.clone()) for p in proposals], samples)
    (losses['loss_cls'] + losses['loss_bbox']).backward()
    return time.process_time() - start


@torch.no_grad()
def forward(h, x, proposals, samples):
    "CPU seconds of what mining cannot do without: one forward of all proposals and objects. And the scores"
    rois = bbox2roi([torch.cat([s.gt_instances.bboxes, p]) for p, s in zip(proposals, samples)])
    start = time.process_time()
    out = h._bbox_forward(x, rois)
    return time.process_time() - start, out['cls_score']


def table(scale):
    images, classes, size, objects, rounds = SCALES[scale]
    data = scene(scale, images, classes, size, objects)
    heads = {name: head(scale, classes, sampler, 'SingleRoIExtractor' if '(mmdet)' in name else 'BagRoIExtractor') for name, sampler in SAMPLERS.items()}
    h, s = heads['PrimeSampler R / R'], SIZES[scale]
    seconds = np.array([[*(step(each, *data) for each in heads.values()), forward(h, *data)[0]] for _ in range(rounds + 1)])[1:]  # warmed up
    above = (forward(h, *data)[1].softmax(1)[:, :-1].max(1)[0] > 0.05).float().mean()
    report('samplers', f'{scale}: time of an RoI head\'s step, over random sampling', against(seconds, [*SAMPLERS, FORWARD]), images=images, proposals=s.proposals,
           rois=s.rois, channels=s.channels, fc=s.fc, classes=classes, scored_above_5_percent=f'{above:.0%}', rounds=rounds, threads=torch.get_num_threads())


if __name__ == '__main__':
    for scale in words() or SCALES: table(scale)
