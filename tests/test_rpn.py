"The RPN of a whole batch against mmdet's, image by image"
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from pisa import rpn
from pisa.detectors import model


def heads(**rpn_cfg):
    "Ours and mmdet's with the same weights, trained and tested as at mini scale"
    cfg = ConfigDict(model('faster_rcnn', 'mini', 8, 'r18_w32'))
    train = ConfigDict(cfg.train_cfg.rpn, **rpn_cfg)
    assert cfg.rpn_head.type == 'BatchRPNHead'
    torch.manual_seed(0)
    pair = [MODELS.build(dict(cfg.rpn_head, type=kind, train_cfg=train, test_cfg=cfg.test_cfg.rpn)) for kind in ('BatchRPNHead', 'RPNHead')]
    for p in pair[0].parameters(): torch.nn.init.normal_(p, std=0.2)
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def batch(counts, side=128):
    "Feature maps of images with so many objects each, large and small, some of them twice"
    g = torch.Generator().manual_seed(sum(counts))
    maps = [torch.randn(len(counts), 64, side // s, side // s, generator=g) for s in (4, 8, 16, 32)]
    objects = []
    for n in counts:
        corner = torch.rand(n, 2, generator=g) * side * 0.8
        boxes = torch.cat([corner, corner + 4 + torch.rand(n, 2, generator=g) * side * 0.5], 1).clamp(max=side)
        boxes[1::5] = boxes[:len(boxes[1::5])]
        objects.append(InstanceData(bboxes=boxes, labels=torch.zeros(n, dtype=torch.long)))
    return maps, objects, [dict(img_shape=(side, side), pad_shape=(side, side)) for _ in counts]


def loss_and_gradient(head, maps, objects, metas):
    torch.manual_seed(7)  # of the anchors drawn
    maps = [m.clone().requires_grad_() for m in maps]
    out = head.loss_by_feat(*head(maps), objects, metas)
    cls, box = sum(out['loss_rpn_cls']), sum(out['loss_rpn_bbox'])
    return [cls, box, *torch.autograd.grad(cls + 2 * box, [*maps, *head.parameters()])]


def same(pair, maps, objects, metas, exact=False):
    for ours, theirs in zip(*(loss_and_gradient(head, maps, objects, metas) for head in pair), strict=True):
        if exact: assert torch.equal(ours, theirs)
        else: torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('counts', [(3, 1, 6), (0, 2), (4, 0, 0), (0, 0), (1,), (40, 2)], ids=str)
@pytest.mark.parametrize('border', [-1, 0])
def test_loss_equals_mmdets(counts, border): same(heads(allowed_border=border), *batch(counts))


@pytest.mark.parametrize('num', [8, 5000])  # fewer than there are positives; more than there are negatives
def test_loss_equals_mmdets_with_other_numbers_of_anchors(num):
    same(heads(sampler=dict(type='RandomSampler', num=num, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False)), *batch((30, 3)))


def test_loss_of_a_padded_batch():
    "Anchors on the padding are left out"
    maps, objects, metas = batch((3, 2))
    for m in metas: m.update(img_shape=(100, 80), pad_shape=(100, 80))
    same(heads(), maps, objects, metas)


def test_the_mini_scale_is_done_at_once(monkeypatch):
    "None of the comparisons here is of mmdet with itself"
    def image_by_image(*args, **words): raise AssertionError
    monkeypatch.setattr(rpn.RPNHead, '_get_targets_single', image_by_image)
    monkeypatch.setattr(rpn.RPNHead, '_predict_by_feat_single', image_by_image)
    head, (maps, objects, metas) = heads()[0], batch((3, 2))
    loss_and_gradient(head, maps, objects, metas)
    head.predict_by_feat(*head(maps), batch_img_metas=metas)


@pytest.mark.parametrize('change', [
    dict(pos_weight=2.), dict(sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=3, add_gt_as_proposals=False)),
    dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=(0.1, 0.3), min_pos_iou=0.3)),
    dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=False))],
    ids=lambda change: next(iter(change)))
def test_another_configuration_is_mmdets(change):
    same(heads(**change), *batch((3, 5)), exact=True)


def test_images_of_different_size_are_mmdets():
    maps, objects, metas = batch((3, 2))
    metas[1].update(img_shape=(90, 128))
    pair = heads()
    same(pair, maps, objects, metas, exact=True)
    for ours, theirs in zip(*(head.predict_by_feat(*head(maps), batch_img_metas=metas) for head in pair)): assert torch.equal(ours.bboxes, theirs.bboxes)


def test_images_too_small_for_any_anchor():
    maps, objects, metas = batch((1, 1))
    for m in metas: m.update(img_shape=(4, 4), pad_shape=(4, 4))
    with pytest.raises(ValueError, match='no valid anchor'): loss_and_gradient(heads(allowed_border=0)[0], maps, objects, metas)


@pytest.mark.parametrize('nms_pre', [50, 256, 100000])
@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize('shape', [(128, 128), (100, 80)])  # proposals are cut off at the image
def test_proposals_equal_mmdets(nms_pre, rescale, shape):
    maps, _, metas = batch((1, 1, 1))
    for m in metas: m.update(img_shape=shape, scale_factor=(2., 2.))
    ours, theirs = ([*head.predict_by_feat(*head(maps), batch_img_metas=metas, cfg=ConfigDict(head.test_cfg, nms_pre=nms_pre), rescale=rescale)] for head in heads())
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) > 20 and set(a.keys()) == set(b.keys())
        torch.testing.assert_close(a.bboxes, b.bboxes)
        torch.testing.assert_close(a.scores, b.scores)
        assert not a.bboxes.requires_grad


@pytest.mark.parametrize('seed', range(20))
def test_assignment_by_loops(seed):
    "IoUs of tenths, so that there are ties and values at the limits"
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (5,), generator=g).tolist()
    iou = torch.randint(0, 11, (sum(counts), 12), generator=g) / 10
    image = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    want = torch.full((5, 12), -1)
    for b in range(5):
        own = [i for i in range(len(image)) if image[i] == b]
        for a in range(12):
            best = max((float(iou[i, a]) for i in own), default=-1.)
            if best < torch.tensor(0.3): want[b, a] = 0
            if best >= torch.tensor(0.7): want[b, a] = next(i for i in own if float(iou[i, a]) == best) + 1
            for i in own:
                if iou[i, a] == iou[i].max() >= 0.3: want[b, a] = i + 1
    assert torch.equal(rpn.assign(iou, image, 5), want)
