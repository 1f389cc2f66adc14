"The RPN of a whole batch against mmdet's, image by image"
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from pisa.lab import rpn
from pisa.lab.detectors import model


def heads(head={}, **rpn_cfg):
    "Ours and mmdet's with the same weights, trained and tested as at mini scale but for what is given"
    cfg = ConfigDict(model('faster_rcnn', 'mini', 8, 'r18_w32'))
    train = ConfigDict(cfg.train_cfg.rpn, **rpn_cfg)
    assert cfg.rpn_head.type == 'BatchRPNHead'
    torch.manual_seed(0)
    pair = [MODELS.build(dict(cfg.rpn_head, type=kind, train_cfg=train, test_cfg=cfg.test_cfg.rpn, **head)) for kind in ('BatchRPNHead', 'RPNHead')]
    for p in pair[0].parameters(): torch.nn.init.normal_(p, std=0.2)
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def batch(counts, height=128, width=128):
    "Feature maps of images with so many objects each, large and small, some of them twice"
    g = torch.Generator().manual_seed(sum(counts))
    maps = [torch.randn(len(counts), 64, height // s, width // s, generator=g) for s in (4, 8, 16, 32)]
    objects, size = [], torch.tensor([width, height])
    for n in counts:
        corner = torch.rand(n, 2, generator=g) * size * 0.8
        boxes = torch.cat([corner, (corner + 4 + torch.rand(n, 2, generator=g) * size * 0.5).minimum(size)], 1)
        boxes[1::5] = boxes[:len(boxes[1::5])]
        objects.append(InstanceData(bboxes=boxes, labels=torch.zeros(n, dtype=torch.long)))
    return maps, objects, [dict(img_shape=(height, width), pad_shape=(height, width)) for _ in counts]


def loss_and_gradient(head, maps, objects, metas):
    torch.manual_seed(7)  # of the anchors drawn
    maps = [m.clone().requires_grad_() for m in maps]
    out = head.loss_by_feat(*head(maps), objects, metas)
    cls, box = sum(out['loss_rpn_cls']), sum(out['loss_rpn_bbox'])
    return len(out['loss_rpn_cls']), [cls, box, *torch.autograd.grad(cls + 2 * box, [*maps, *head.parameters()])]


def same(pair, maps, objects, metas, at_once=True):
    "Equal up to rounding; where mmdet's way is taken, which gives a loss a level, to the bit"
    (terms, ours), (_, theirs) = (loss_and_gradient(head, maps, objects, metas) for head in pair)
    assert terms == (1 if at_once else len(maps))
    for a, b in zip(ours, theirs, strict=True): torch.testing.assert_close(a, b, **(dict(rtol=1e-4, atol=1e-6) if at_once else dict(rtol=0, atol=0)))


@pytest.mark.parametrize('counts', [(3, 1, 6), (0, 2), (4, 0, 0), (0, 0), (1,), (40, 2)], ids=str)
@pytest.mark.parametrize('border,size', [(-1, (128, 128)), (0, (128, 128)), (0, (96, 160))], ids=str)
def test_loss_equals_mmdets(counts, border, size): same(heads(allowed_border=border), *batch(counts, *size))


@pytest.mark.parametrize('num', [8, 5000])  # fewer than there are positives; more than there are negatives
def test_loss_equals_mmdets_with_other_numbers_of_anchors(num): same(heads(sampler=dict(SAMPLER, num=num)), *batch((30, 3)))


def test_loss_of_a_padded_batch():
    "Anchors on the padding are left out"
    maps, objects, metas = batch((3, 2))
    for m in metas: m.update(img_shape=(100, 80), pad_shape=(100, 80))
    same(heads(), maps, objects, metas)


def test_labels_are_those_of_the_objects():
    maps, objects, metas = batch((3, 2))
    for o in objects: o.labels[-1] = 1
    same(heads(), maps, objects, metas)


SAMPLER = dict(type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False)
ASSIGNER = dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True, ignore_iof_thr=-1)


@pytest.mark.parametrize('assigner', [dict(pos_iou_thr=0.5, neg_iou_thr=0.5), dict(min_pos_iou=-2.)], ids=str)
def test_other_thresholds(assigner): same(heads(assigner=dict(ASSIGNER, **assigner)), *batch((3, 5, 1)))


@pytest.mark.parametrize('change', [
    dict(pos_weight=2.), dict(sampler=dict(SAMPLER, neg_pos_ub=3)), dict(sampler=dict(type='PseudoSampler')),
    dict(assigner=dict(ASSIGNER, neg_iou_thr=(0.1, 0.3))), dict(assigner=dict(ASSIGNER, match_low_quality=False)),
    dict(assigner=dict(ASSIGNER, gt_max_assign_all=False)), dict(assigner=dict(ASSIGNER, ignore_iof_thr=0.5)),
    dict(head=dict(reg_decoded_bbox=True)), dict(head=dict(loss_bbox=dict(type='GIoULoss'))),
    dict(head=dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False))),
    dict(head=dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True)))], ids=str)
def test_another_configuration_is_mmdets(change): same(heads(**change), *batch((3, 5)), at_once=False)


@pytest.mark.parametrize('key', ['img_shape', 'pad_shape'])
def test_images_of_different_size_are_mmdets(key):
    maps, objects, metas = batch((3, 2))
    metas[1][key] = (90, 128)
    pair = heads(allowed_border=0)
    same(pair, maps, objects, metas, at_once=False)
    for ours, theirs in zip(*(head.predict_by_feat(*head(maps), batch_img_metas=metas) for head in pair)): assert torch.equal(ours.bboxes, theirs.bboxes)


def test_fewer_images_than_maps():
    maps, _, metas = batch((3, 2, 1))
    ours, theirs = (head.predict_by_feat(*head(maps), batch_img_metas=metas[:2], cfg=ConfigDict(head.test_cfg, nms_pre=20)) for head in heads())
    assert len(ours) == 2
    for a, b in zip(ours, theirs, strict=True): assert torch.equal(a.bboxes, b.bboxes)


def test_images_too_small_for_any_anchor():
    maps, objects, metas = batch((1, 1))
    for m in metas: m.update(img_shape=(4, 4), pad_shape=(4, 4))
    with pytest.raises(ValueError, match='no valid anchor'): loss_and_gradient(heads(allowed_border=0)[0], maps, objects, metas)


@pytest.mark.parametrize('nms_pre', [50, 256, 100000])
@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize('shape', [(128, 128), (100, 80)])  # proposals are cut off at the image
def test_proposals_equal_mmdets(nms_pre, rescale, shape):
    maps, _, metas = batch((1, 1, 1))
    for i, m in enumerate(metas): m.update(img_shape=shape, scale_factor=(1. + i, 2.))
    ours, theirs = ([*head.predict_by_feat(*head(maps), batch_img_metas=metas, cfg=ConfigDict(head.test_cfg, nms_pre=nms_pre), rescale=rescale)] for head in heads())
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) > 20 and set(a.keys()) == set(b.keys())
        torch.testing.assert_close(a.bboxes, b.bboxes)
        torch.testing.assert_close(a.scores, b.scores)
        assert not a.bboxes.requires_grad and not a.scores.requires_grad


def test_proposals_are_not_made_image_by_image(monkeypatch):
    "None of the comparisons above is of mmdet with itself"
    def image_by_image(*args, **words): raise AssertionError
    monkeypatch.setattr(rpn.RPNHead, '_predict_by_feat_single', image_by_image)
    head, (maps, _, metas) = heads()[0], batch((3, 2))
    head.predict_by_feat(*head(maps), batch_img_metas=metas)


@pytest.mark.parametrize('seed', range(20))
def test_assignment_by_loops(seed):
    "IoUs of eighths, so that there are ties and values at the limits"
    g = torch.Generator().manual_seed(seed)
    n = seed % 5
    iou = torch.randint(0, 8 - n, (n, 12), generator=g) / 8
    want = [-1] * 12
    for a in range(12):
        best = max((float(iou[i, a]) for i in range(n)), default=0.)
        if best < 0.25: want[a] = 0
        if best >= 0.625: want[a] = iou[:, a].tolist().index(best) + 1
        for i in range(n):
            if iou[i, a] == iou[i].max() >= 0.375: want[a] = i + 1
    assert rpn.assign(iou, 0.625, 0.25, 0.375).tolist() == want
