"""Small heads of mmdet, and scenes that are made up, for the notebooks beside this file and for the tests.

`roi_head` and `cascade_head` take RoIs; `retina`, `ssd` and `atss` are single-stage. Each has the same weights at every
call. `scene` has images for all of them; `run` and `losses` send one through a head. `type` names are looked up in
mmdet's registry, so import `pisa.mmdet` before, or run the notebook that defines them."""
import contextlib
import numpy as np
import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

with contextlib.redirect_stdout(None): register_all_modules()  # it prints which data set packages are missing
RANDOM = dict(type='RandomSampler', num=64, pos_fraction=0.25)
FOCAL = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25)
CODER = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
STRIDES = [4, 8, 16]  # of the levels; RoI heads take the first two
BORDER = torch.tensor([[0., 0, 1, 1], [.75, 0, 1, .2], [0, .6, .3, 1]])  # all of an image, two parts at its edges


def roi_head(kind='PrimeRoIHead', sampler=RANDOM, classes=3, masks=False, channels=8, box_head={}, **rcnn):
    """An RoI head; of a cascade where `kind` is one, with two stages, the second with a higher IoU threshold.

    `box_head` holds more of the box head's arguments, `rcnn` more of `train_cfg`, as `isr` and `carl`."""
    cascade = 'Cascade' in str(kind)
    extractor = dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
                     out_channels=channels, featmap_strides=STRIDES[:2])
    box = dict(type='Shared2FCBBoxHead', in_channels=channels, fc_out_channels=16, roi_feat_size=7,
               num_classes=classes, bbox_coder=CODER, reg_class_agnostic=cascade,
               loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=dict(type='SmoothL1Loss')) | box_head
    mask = dict(type='FCNMaskHead', num_convs=1, roi_feat_size=7, in_channels=channels, conv_out_channels=8,
                num_classes=classes, loss_mask=dict(type='CrossEntropyLoss', use_mask=True))
    one, two = (dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou,
                                   ignore_iof_thr=0.5),
                     sampler=sampler, pos_weight=-1, debug=False, mask_size=14, **rcnn) for iou in (0.5, 0.6))
    stages = dict(bbox_head=[box, box], train_cfg=[one, two], num_stages=2, stage_loss_weights=[1, 0.5])
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(
        type=kind, bbox_roi_extractor=extractor, **(stages if cascade else dict(bbox_head=box, train_cfg=one)),
        **(dict(mask_roi_extractor=extractor, mask_head=mask) if masks else {}),
        test_cfg=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20, mask_thr_binary=0.5)))


def cascade_head(kind='PrimeCascadeRoIHead', **more):
    "`roi_head` of a cascade"
    return roi_head(kind, **more)


def dense_head(kind, anchors, assigner, train, **args):
    "A single-stage head on three levels; `train` holds more of `train_cfg`"
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(
        type=kind, anchor_generator=dict(strides=STRIDES, **anchors), **args,
        train_cfg=dict(assigner=dict(ignore_iof_thr=0.5, **assigner), sampler=dict(type='PseudoSampler'),
                       allowed_border=-1, pos_weight=-1, debug=False) | train))


def retina(kind='PrimeRetinaHead', classes=3, head={}, **train):
    "A RetinaNet head; `head` holds more of its arguments, `train` more of `train_cfg`, as `isr` and `carl`"
    own = dict(in_channels=8, feat_channels=8, stacked_convs=1, loss_cls=FOCAL,
               loss_bbox=dict(type='SmoothL1Loss', beta=0.11))
    anchors = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=2, ratios=[0.5, 1., 2.])
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    return dense_head(kind, anchors, assigner, train, num_classes=classes, **own | head)


def ssd(kind='PrimeSSDHead', classes=3, head={}, **train):
    "An SSD head; `head` and `train` as for `retina`"
    anchors = dict(type='SSDAnchorGenerator', scale_major=False, input_size=128, min_sizes=[8, 16, 32],
                   max_sizes=[16, 32, 48], ratios=[[2], [2], [2]])
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0., gt_max_assign_all=False)
    return dense_head(kind, anchors, assigner, dict(smoothl1_beta=1., neg_pos_ratio=3) | train,
                      num_classes=classes, in_channels=(8, 8, 8), **head)


def atss(kind='PrimeATSSHead', classes=3, head={}, **train):
    "An ATSS head; `head` and `train` as for `retina`"
    own = dict(in_channels=8, feat_channels=8, stacked_convs=1, norm_cfg=dict(type='GN', num_groups=2),
               bbox_coder=CODER, loss_cls=FOCAL, loss_bbox=dict(type='GIoULoss', loss_weight=2.0))
    anchors = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.])
    return dense_head(kind, anchors, dict(type='ATSSAssigner', topk=9), train, num_classes=classes, **own | head)


def scene(objects=(3, 0, 2), classes=3, order=None, same_class=False, border=False, crowd=None, height=128,
          channels=8):
    """B images of 128x128 pixels with so many `objects` each: features, proposals and samples, in the given `order`.

    Features are random, one [B, channels, 128/s, 128/s] for each stride s. Proposals are jittered ground truths and
    noise, B times `bboxes` [12 * n + 100, 4] for n objects. Samples have `bboxes` [n, 4], `labels` [n] and `masks`.
    `border` puts objects at the edges, `crowd` is an ignored box of each image; below `height` is padding."""
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=g)
    x = [rand(len(objects), channels, 128 // s, 128 // s) for s in STRIDES]
    meta = dict(img_shape=(height, 128), pad_shape=(height, 128), ori_shape=(128, 128), scale_factor=(1., 1.))
    proposals, samples = [], []
    for i, n in enumerate(objects):
        xy, far = rand(n, 2) * 80, rand(100, 2) * 90
        gt = BORDER[:n] * 128 if border else torch.cat([xy, xy + 15 + rand(n, 2) * 30], 1)
        near = gt.repeat(12, 1) + rand(12 * n, 4) * 8 - 4
        proposals.append(InstanceData(bboxes=torch.cat([near, torch.cat([far, far + 10 + rand(100, 2) * 25], 1)])))
        labels = torch.randint(1 if same_class else classes, (n,), generator=g)
        masks = np.zeros((n, 128, 128), np.uint8)
        for m, (x1, y1, x2, y2) in zip(masks, gt.int().tolist()): m[y1:y2, x1:x2] = 1
        gts = InstanceData(bboxes=gt, labels=labels, masks=BitmapMasks(masks, 128, 128))
        samples.append(DetDataSample(metainfo=meta, gt_instances=gts))
        if crowd is not None:
            samples[-1].ignored_instances = InstanceData(bboxes=torch.tensor([crowd[i]]), labels=torch.tensor([0]))
    order = list(order or range(len(objects)))
    return tuple(level[order] for level in x), [proposals[i] for i in order], [samples[i] for i in order]


def dense_scene(*args, **kwargs):
    "Features of a `scene`, and ground truths, sizes and ignored regions of its images, as `loss_by_feat` takes them"
    x, _, samples = scene(*args, **kwargs)
    gts, ignored, metas = unpack_gt_instances(samples)
    return x, (gts, metas, ignored)


def run(head, *args, **kwargs):
    "Losses of a head on a `scene`, each a scalar, and the gradients of all parameters"
    x, proposals, samples = scene(*args, **kwargs)
    torch.manual_seed(1)
    np.random.seed(1)
    out = head.loss(x, samples) if isinstance(head, BaseDenseHead) else head.loss(x, proposals, samples)
    out = {k: sum(v).sum() if isinstance(v, list) else v.sum() for k, v in out.items() if 'loss' in k}
    head.zero_grad(set_to_none=True)
    sum(out.values()).backward()
    return {k: v.detach() for k, v in out.items()}, {k: p.grad for k, p in head.named_parameters()}


def losses(head, *args, **kwargs):
    "The losses of `run` as numbers"
    return {k: v.item() for k, v in run(head, *args, **kwargs)[0].items()}
