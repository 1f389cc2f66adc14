"Small heads and scenes that the tests of the detectors share"
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
import numpy as np
import pisa.mmdet.two_stage

register_all_modules()
RANDOM = dict(type='RandomSampler', num=64, pos_fraction=0.25)
ALL = dict(type='RandomSampler', num=100_000, pos_fraction=0.5)  # takes every RoI, so nothing is left to chance
DECODED = dict(reg_decoded_bbox=True)


def roi_head(kind='PrimeRoIHead', classes=3, sampler=RANDOM, masks=False, box_loss=dict(type='SmoothL1Loss'), box_head={}, **rcnn):
    "An RoI head on two levels of 8 channels, its weights the same at every call; `rcnn` goes into train_cfg"
    torch.manual_seed(0)
    extractor = lambda size: dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=1),
                                  out_channels=8, featmap_strides=[4, 8])
    mask = dict(mask_roi_extractor=extractor(7), mask_head=dict(
        type='FCNMaskHead', num_convs=1, roi_feat_size=7, in_channels=8, conv_out_channels=8, num_classes=classes,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True))) if masks else {}
    return MODELS.build(ConfigDict(
        type=kind, bbox_roi_extractor=extractor(7),
        bbox_head=dict(dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=16, roi_feat_size=7, num_classes=classes,
                            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
                            loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=box_loss), **box_head), **mask,
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5), sampler=sampler,
                       pos_weight=-1, debug=False, mask_size=14, **rcnn),
        test_cfg=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20, mask_thr_binary=0.5)))


def cascade_head(kind='PrimeCascadeRoIHead', classes=3, sampler=RANDOM, loss_cls=dict(type='CrossEntropyLoss'),
                 box_loss=dict(type='SmoothL1Loss'), box_head={}, **rcnn):
    "A cascade of two stages, the second with a higher IoU threshold; `rcnn` goes into train_cfg of both"
    stage = lambda iou: dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou), sampler=sampler,
                             pos_weight=-1, debug=False, **rcnn)
    box = dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=16, roi_feat_size=7, num_classes=classes, reg_class_agnostic=True,
               bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
               loss_cls=loss_cls, loss_bbox=box_loss, **box_head)
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(
        type=kind, num_stages=2, stage_loss_weights=[1, 0.5], bbox_head=[box, box], train_cfg=[stage(0.5), stage(0.6)],
        bbox_roi_extractor=dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
                                out_channels=8, featmap_strides=[4, 8])))


BORDER = torch.tensor([[0., 0, 1, 1], [.75, 0, 1, .2], [0, .6, .3, 1]])  # the whole image and two at its edges, as parts of its side


def scene(objects=(3, 2), classes=3, seed=0, order=None, same_class=False, border=False, crowd=None):
    "Features, proposals and ground truths of as many images as `objects` has entries, in the given order; `crowd` is an ignored box of each image"
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g)
    x = tuple(rand(len(objects), 8, 128 // s, 128 // s) for s in (4, 8))
    images = []
    for n in objects:
        xy = rand(n, 2) * 80
        gt = BORDER[:n] * 128 if border else torch.cat([xy, xy + 15 + rand(n, 2) * 30], 1)
        near = gt.repeat(12, 1) + rand(12 * n, 4) * 8 - 4
        noise = rand(40, 2) * 90
        boxes = torch.cat([near, torch.cat([noise, noise + 10 + rand(40, 2) * 25], 1)])
        labels = torch.zeros(n, dtype=torch.long) if same_class else torch.randint(classes, (n,), generator=g)
        masks = np.zeros((n, 128, 128), np.uint8)
        for m, (x1, y1, x2, y2) in zip(masks, gt.int().tolist()): m[y1:y2, x1:x2] = 1
        images.append((boxes, gt, labels, BitmapMasks(masks, 128, 128)))
    order = list(order or range(len(objects)))
    samples = []
    for i in order:
        meta = dict(img_shape=(128, 128), ori_shape=(128, 128), scale_factor=(1., 1.))
        samples.append(DetDataSample(metainfo=meta, gt_instances=InstanceData(bboxes=images[i][1], labels=images[i][2], masks=images[i][3])))
        if crowd is not None: samples[-1].ignored_instances = InstanceData(bboxes=torch.tensor([crowd[i]]), labels=torch.zeros(1, dtype=torch.long))
    return tuple(level[order] for level in x), [InstanceData(bboxes=images[i][0].clone()) for i in order], samples


def run(head, *args, seed=1, **kwargs):
    "Losses of one forward, and the gradients of all parameters"
    torch.manual_seed(seed)
    np.random.seed(seed)
    losses = {k: v for k, v in head.loss(*scene(*args, **kwargs)).items() if 'loss' in k}
    sum(v.sum() for v in losses.values()).backward()
    grads = {k: p.grad.clone() if p.grad is not None else None for k, p in head.named_parameters()}
    head.zero_grad(set_to_none=True)
    return {k: v.detach().squeeze() for k, v in losses.items()}, grads


ANCHORS = dict(strides=[4, 8, 16])
PSEUDO = dict(type='PseudoSampler')


def retina(kind='PrimeRetinaHead', classes=3, box_loss=dict(type='SmoothL1Loss', beta=0.11), decoded=False, ignore=-1, sampler=PSEUDO,
           **train):
    "A RetinaNet head on three levels of 8 channels; `ignore` is the assigner's `ignore_iof_thr`"
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(
        type=kind, num_classes=classes, in_channels=8, feat_channels=8, stacked_convs=1, reg_decoded_bbox=decoded,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=2, ratios=[0.5, 1., 2.], **ANCHORS),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25), loss_bbox=box_loss,
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=ignore),
                       sampler=sampler, allowed_border=-1, pos_weight=-1, debug=False, **train)))


def ssd(kind='PrimeSSDHead', classes=3, ignore=-1, head={}, **train):
    "An SSD head on three levels of 8 channels; `head` holds more of its arguments"
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(
        type=kind, num_classes=classes, in_channels=(8, 8, 8), **head,
        anchor_generator=dict(type='SSDAnchorGenerator', scale_major=False, input_size=64, min_sizes=[8, 16, 32], max_sizes=[16, 32, 48],
                              ratios=[[2], [2], [2]], **ANCHORS),
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0., ignore_iof_thr=ignore,
                                     gt_max_assign_all=False), sampler=PSEUDO, smoothl1_beta=1.,
                       allowed_border=-1, pos_weight=-1, neg_pos_ratio=3, debug=False, **train)))


def atss(kind='PrimeATSSHead', classes=3, ignore=-1, sampler=PSEUDO, head={}, **train):
    "An ATSS head on three levels of 8 channels"
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(
        type=kind, num_classes=classes, in_channels=8, feat_channels=8, stacked_convs=1, norm_cfg=dict(type='GN', num_groups=2),
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.], **ANCHORS),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0), **head,
        train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9, ignore_iof_thr=ignore), sampler=sampler,
                       allowed_border=-1, pos_weight=-1, debug=False, **train)))


def dense_scene(objects=(3, 2), classes=3, order=None, same_class=False, ignored=False, pad=64, border=False):
    "Features and, as `loss_by_feat` takes them, targets; `pad` below 64 leaves anchors in the padding without a target"
    g = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=g)
    x = [rand(len(objects), 8, 64 // s, 64 // s) for s in ANCHORS['strides']]
    gts = []
    for n in objects:
        xy = rand(n, 2) * 28
        label = torch.zeros(n, dtype=torch.long) if same_class else torch.randint(classes, (n,), generator=g)
        gts.append(InstanceData(bboxes=BORDER[:n] * 64 if border else torch.cat([xy, xy + 10 + rand(n, 2) * 20], 1), labels=label))
    order = list(order or range(len(objects)))
    crowd = [InstanceData(bboxes=torch.tensor([[0., 0, 30, 30]]), labels=torch.tensor([0]))] * len(objects) if ignored else None
    metas = [dict(img_shape=(pad, 64), pad_shape=(pad, 64))] * len(objects)
    return tuple(level[order] for level in x), ([gts[i] for i in order], metas, crowd)


def dense_run(head, *args, **kwargs):
    "Losses and gradients of a single-stage head on `dense_scene`"
    x, targets = dense_scene(*args, **kwargs)
    losses = head.loss_by_feat(*head(x), *targets)
    losses = {k: sum(v.sum() for v in vs) if isinstance(vs, list) else vs.sum() for k, vs in losses.items()}
    head.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    return {k: v.detach() for k, v in losses.items()}, {k: p.grad for k, p in head.named_parameters()}
