"PrimeRetinaHead, PrimeSSDHead and PrimeATSSHead against mmdet's own heads, and where those are wrong against what must hold"
from functools import partial
from math import prod
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet')
import pisa.mmdet.single_stage as single
from mmdet.models.dense_heads import atss_head
from mmdet.models.losses import GIoULoss
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from refusal import refused
from small import atss, dense_scene, retina, run, ssd

ISR, CARL, ADD = dict(isr=dict()), dict(carl=dict()), dict(carl=dict(form='add', b=0.2))
HEADS = pytest.mark.parametrize('head,standard', [(retina, 'RetinaHead'), (ssd, 'SSDHead'), (atss, 'ATSSHead')],
                                ids=['retina', 'ssd', 'atss'])
RELEASED = pytest.mark.parametrize('head,released', [(retina, 'PISARetinaHead'), (ssd, 'PISASSDHead')], ids=['retina', 'ssd'])


def close(a, b, rtol=1e-4, atol=1e-6):
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=rtol, atol=atol, msg=lambda m: f'{k}: {m}')


# ---- beside mmdet's heads

@HEADS
@pytest.mark.parametrize('objects', [(3, 2), (1, 0, 4), (0, 0)])
def test_both_off_is_mmdets_head(head, standard, objects):
    for off, plain in zip(run(head(), objects), run(head(standard), objects)): close(off, plain, 0, 0)


@HEADS
@pytest.mark.parametrize('objects', [(3, 2), (1, 0, 4), (0, 0)])
def test_weights_of_one_leave_mmdets_losses_and_gradients(head, standard, objects):
    "gamma = 0 gives all positives the same weight: what is summed here in one row is what mmdet sums by level or by image"
    for prime, plain in zip(run(head(isr=dict(gamma=0.)), objects), run(head(standard), objects)):
        close(prime, plain, 1e-4, 1e-5)


@RELEASED
def test_agrees_with_mmdets_pisa_where_that_is_right(head, released):
    "One class (so n_j is the largest n), two images, the added CARL"
    ours = run(head(classes=1, isr=dict(gamma=2., beta=0.), carl=dict(k=1., b=0.2, form='add')), (3, 2), 1)
    theirs = run(head(released, classes=1, isr=dict(k=2., bias=0.), carl=dict(k=1., bias=0.2)), (3, 2), 1)
    close(ours[0], theirs[0])
    close(ours[1], theirs[1], 1e-3, 1e-6)


@HEADS
@pytest.mark.parametrize('keys', [ISR, CARL, {**ISR, **CARL}], ids=['isr', 'carl', 'both'])
@pytest.mark.parametrize('more', [dict(), dict(crowd=[[0., 0, 60, 60]] * 3), dict(height=80)], ids=['plain', 'ignored', 'padding'])
def test_v1_changes_gradients_but_no_value(head, standard, keys, more):
    "Eq. 3 and Eq. 4 (v1) preserve the totals, also with ignored regions and with anchors in the padding"
    plain, prime = run(head(standard), (3, 1, 2), **more), run(head(**keys), (3, 1, 2), **more)
    close(plain[0], prime[0])
    assert any(not torch.allclose(plain[1][k], prime[1][k], rtol=1e-3) for k in plain[1])
    assert all(torch.isfinite(g).all() for g in prime[1].values())
    if more: assert any(plain[0][k] != v for k, v in run(head(standard), (3, 1, 2))[0].items())  # the region and the padding matter


# ---- against references written as loops

def iou(a, b):
    "IoU and GIoU of two boxes"
    area = lambda x: prod(max(hi - lo, 0.) for lo, hi in zip(x[:2], x[2:]))
    corners = lambda f, g: [f(p, q) for p, q in zip(a[:2], b[:2])] + [g(p, q) for p, q in zip(a[2:], b[2:])]
    inter, hull = area(corners(max, min)), area(corners(min, max))
    union = area(a) + area(b) - inter
    return inter / union, inter / union - (hull - union) / hull


def positives_by_image(head, x, targets):
    "Row in B * A, anchor, box, ground truth (its id and its box), label and logits of each positive, image by image"
    with torch.no_grad(): scores, deltas, *_ = head(x)
    gts, metas, ignored = targets
    levels = head.get_anchors([s.shape[-2:] for s in scores], metas, device='cpu')[0][0]
    anchors = torch.cat(levels)
    join = lambda outputs, d: torch.cat([o.permute(0, 2, 3, 1).flatten(1, 2).reshape(len(metas), -1, d) for o in outputs], 1)
    score, delta = join(scores, head.cls_out_channels), join(deltas, 4)
    rows = []
    for i, gt in enumerate(gts):
        number = ([len(level) for level in levels],) if isinstance(head, single.ATSSHead) else ()
        gt_inds = head.assigner.assign(InstanceData(priors=anchors), *number, gt, ignored[i]).gt_inds
        box = head.bbox_coder.decode(anchors, delta[i])
        rows += [dict(row=i*len(anchors) + a, anchor=anchors[a].tolist(), box=box[a].tolist(), gt=(i, gt_inds[a].item()),
                      gt_box=gt.bboxes[gt_inds[a] - 1].tolist(), label=gt.labels[gt_inds[a] - 1].item(), score=score[i, a])
                 for a in (gt_inds > 0).nonzero()[:, 0].tolist()]
    return rows


def reference_isr(rows, focal, gamma=2., beta=0.):
    "IoU-HLR and Eq. 1 to 3 (v1), one positive after the other"
    for r in rows:
        r['iou'] = iou(r['box'], r['gt_box'])[0]
        if focal:
            p = r['score'].double().sigmoid()
            hit = F.one_hot(torch.tensor(r['label']), len(p)).bool()
            r['loss'] = torch.where(hit, -.25 * (1 - p)**2 * p.log(), -.75 * p**2 * (1 - p).log()).sum().item()
        else: r['loss'] = -r['score'].double().log_softmax(0)[r['label']].item()
    for r in rows: r['local'] = sum(q['gt'] == r['gt'] and q['iou'] > r['iou'] for q in rows)
    for r in rows:
        mates = [q for q in rows if q['label'] == r['label']]
        rank = sum((q['local'], -q['iou']) < (r['local'], -r['iou']) for q in mates)
        r['w'] = ((1 - beta) * (len(mates) - rank) / len(mates) + beta)**gamma
    ratio = sum(r['loss'] for r in rows) / sum(r['w'] * r['loss'] for r in rows)
    return torch.tensor([r['w'] * ratio for r in rows])


@HEADS
@pytest.mark.parametrize('objects', [(4, 1, 0, 3), (2,)])
@pytest.mark.parametrize('gamma,beta', [(2., 0.), (1., .3)])
def test_isr_multiplies_each_positive_by_its_weight(head, standard, objects, gamma, beta):
    "By the gradient of the classification loss with respect to the logits of each anchor; those of the negatives stay"
    x, targets = dense_scene(objects)
    def gradient(module):
        scores, *rest = module(x)
        scores = [s.detach().requires_grad_() for s in scores]
        loss = module.loss_by_feat(scores, *rest, *targets)['loss_cls']
        sum(v.sum() for v in loss).backward() if isinstance(loss, list) else loss.backward()
        return torch.cat([s.grad.permute(0, 2, 3, 1).reshape(len(objects), -1, module.cls_out_channels) for s in scores], 1).flatten(0, 1)
    prime = head(isr=dict(gamma=gamma, beta=beta))
    plain, weighted = gradient(head(standard)), gradient(prime)
    rows = positives_by_image(prime, x, targets)
    want = torch.ones(len(plain))
    want[[r['row'] for r in rows]] = reference_isr(rows, head is not ssd, gamma, beta)
    assert len(rows) > 4 and want.unique().numel() > 4
    torch.testing.assert_close(weighted, plain * want[:, None], rtol=1e-3, atol=1e-7)


def reference_carl(rows, k, b):
    "The added CARL of an ATSS head with GIoU of weight 2: samples count by their centerness"
    for r in rows:
        cx, cy = ((r['anchor'][i] + r['anchor'][i + 2]) / 2 for i in (0, 1))
        x1, y1, x2, y2 = r['gt_box']
        ratio = lambda p, q: min(p, q) / max(p, q)
        r['t'] = (ratio(cx - x1, x2 - cx) * ratio(cy - y1, y2 - cy))**.5
        r['v'] = ((1 - b) * r['score'][r['label']].sigmoid().item() + b)**k
        r['reg'] = 2 * (1 - iou(r['box'], r['gt_box'])[1])
    t, tv = sum(r['t'] for r in rows), sum(r['t'] * r['v'] for r in rows)
    return sum(r['v'] * t / tv * r['t'] * r['reg'] for r in rows) / max(t, 1)


@pytest.mark.parametrize('objects', [(4, 1, 0, 3), (1,)])
@pytest.mark.parametrize('k,b', [(1., .1), (2., .3), (.5, 0.)])
def test_carl_of_atss_counts_by_centerness(objects, k, b):
    x, targets = dense_scene(objects)
    head = atss(carl=dict(form='add', k=k, b=b))
    want = reference_carl(positives_by_image(head, x, targets), k, b)
    torch.testing.assert_close(run(head, objects)[0]['loss_carl'], torch.tensor(want), rtol=1e-4, atol=1e-6)


@HEADS
@pytest.mark.parametrize('b', [0.1, 0.3])
def test_gradient_of_carl_into_the_scores_by_finite_differences(head, standard, b):
    "Of the added form, whose value moves; the replacing one has the same gradient times r (no gradient through r, Appendix A)"
    x, targets = dense_scene((3, 0, 2))
    total = lambda v: sum(v).sum() if isinstance(v, list) else v.sum()
    def run(form, key, detach=False, step=0., along=None):
        module = head(carl=dict(form=form, b=b, k=2., detach=detach))
        scores, *rest = module(x)
        scores = [s.detach() + (step*d if along else 0) for s, d in zip(scores, along or scores)]
        for s in scores: s.requires_grad_()
        losses = module.loss_by_feat(scores, *rest, *targets)
        loss = total(losses[key])
        return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, scores, materialize_grads=True)]), scores
    loss, grad, scores = run('add', 'loss_carl')
    for seed in range(3):
        gen = torch.Generator().manual_seed(seed)
        along = [torch.randn(s.shape, generator=gen) for s in scores]
        up, down = (run('add', 'loss_carl', step=step, along=along)[0].double() for step in (.02, -.02))
        slope = grad.double() @ torch.cat([d.flatten() for d in along]).double()
        torch.testing.assert_close((up - down) / .04, slope, rtol=5e-3, atol=2e-5)
    replaced, grad_replaced, _ = run('replace', 'loss_bbox')
    torch.testing.assert_close(grad_replaced, grad * replaced / loss, rtol=1e-3, atol=1e-8)
    assert grad.abs().max() > 1e-4 and not run('replace', 'loss_bbox', detach=True)[1].any()


def test_atss_divides_by_the_mean_over_all_processes(monkeypatch):
    "As mmdet's head does: both totals go through reduce_mean"
    for module in (single, atss_head): monkeypatch.setattr(module, 'reduce_mean', lambda x: x*3)
    plain, prime, added = (run(h, (3, 1, 2)) for h in (atss('ATSSHead'), atss(**ISR, **CARL), atss(**ADD)))
    close(plain[0], prime[0])
    monkeypatch.undo()
    alone = run(atss(**ADD), (3, 1, 2))[0]
    close({k: v*3 for k, v in added[0].items()}, alone)


# ---- box losses

BOX_LOSSES = {'l1': dict(loss_bbox=dict(type='L1Loss')), 'smooth_l1': dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.11)),
              'decoded': dict(reg_decoded_bbox=True), 'decoded_l1': dict(reg_decoded_bbox=True, loss_bbox=dict(type='L1Loss', loss_weight=0.1)),
              'iou': dict(reg_decoded_bbox=True, loss_bbox=dict(type='IoULoss')),
              'giou': dict(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss', loss_weight=2.0))}

@pytest.mark.parametrize('kind', ['IoULoss', 'GIoULoss'])
@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_retina_with_a_loss_on_boxes(kind, keys):
    box = dict(loss_bbox=dict(type=kind), reg_decoded_bbox=True)
    plain, prime = run(retina('RetinaHead', head=box)), run(retina(head=box, **keys))
    for k in plain[0]: torch.testing.assert_close(plain[0][k], prime[0][k], rtol=1e-4, atol=1e-6)
    if 'loss_carl' in prime[0]: assert 0 < prime[0]['loss_carl'] < 2 * plain[0]['loss_bbox']


@pytest.mark.parametrize('box', BOX_LOSSES.values(), ids=BOX_LOSSES)
@pytest.mark.parametrize('keys', [ISR, {**ISR, **CARL}, {**ISR, **ADD}], ids=['isr', 'replace', 'add'])
@pytest.mark.parametrize('objects', [(3, 1, 2), (2, 0), (0, 0)])
def test_ssd_with_other_box_losses(box, keys, objects):
    "One number a box or a coordinate, deltas or boxes: the values are those of the head without the keys"
    plain, prime = run(ssd(head=box), objects), run(ssd(head=box, **keys), objects)
    for k in plain[0]: torch.testing.assert_close(plain[0][k], prime[0][k], rtol=1e-4, atol=1e-6)
    if 'loss_carl' in prime[0] and sum(objects): assert 0 < prime[0]['loss_carl'] < 2 * plain[0]['loss_bbox']
    assert all(torch.isfinite(g).all() for g in prime[1].values())
    assert torch.equal(plain[0]['loss_cls'], run(ssd('SSDHead'), objects)[0]['loss_cls'])


@pytest.mark.parametrize('decoded', [False, True])
@pytest.mark.parametrize('loss', [None, dict(type='SmoothL1Loss', beta=1.0)])
def test_ssds_own_box_loss_is_smooth_l1(decoded, loss):
    named = {} if loss is None else dict(loss_bbox=loss)
    box = dict(reg_decoded_bbox=decoded)
    for prime, plain in zip(run(ssd(head={**box, **named})), run(ssd('SSDHead', head=box))): close(prime, plain, 0, 0)


def test_ssds_giou_is_that_of_the_positives():
    x, targets = dense_scene((3, 1, 2))
    head = ssd(head=BOX_LOSSES['giou'])
    rows = positives_by_image(head, x, targets)
    want = GIoULoss()(*(torch.tensor([r[k] for r in rows]) for k in ('box', 'gt_box')), reduction_override='sum') * 2 / len(rows)
    torch.testing.assert_close(run(head, (3, 1, 2))[0]['loss_bbox'], want)


def test_another_box_loss_needs_no_beta():
    head = ssd(head=dict(loss_bbox=dict(type='L1Loss')))
    train = ConfigDict({k: v for k, v in head.train_cfg.items() if k != 'smoothl1_beta'})
    built = single.PrimeSSDHead(num_classes=3, in_channels=(8, 8, 8), loss_bbox=dict(type='L1Loss'), train_cfg=train, bbox_coder=dict(
        type='DeltaXYWHBBoxCoder', clip_border=True), anchor_generator=dict(type='SSDAnchorGenerator', scale_major=False, input_size=128,
        strides=[4, 8, 16], min_sizes=[8, 16, 32], max_sizes=[16, 32, 48], ratios=[[2], [2], [2]]))
    built.load_state_dict(head.state_dict())
    close(run(built)[0], run(head)[0], 0, 0)


# ---- what must hold for every head

@HEADS
@pytest.mark.parametrize('keys', [ISR, {**ISR, **CARL}, {**ISR, **ADD}], ids=['isr', 'replace', 'add'])
def test_order_of_images_does_not_matter(head, standard, keys):
    "Objects of different images never share a group"
    objects, orders = (1, 3, 1, 2), ((2, 0, 3, 1), (3, 2, 1, 0))
    first = run(head(**keys), objects, same_class=True)
    for order in orders:
        other = run(head(**keys), objects, order=order, same_class=True)
        close(first[0], other[0])
        close(first[1], other[1], 1e-3, 1e-6)


@RELEASED
def test_in_the_released_heads_it_matters_from_three_images_on(head, released):
    objects, orders = (1, 3, 1, 2), ((2, 0, 3, 1), (3, 2, 1, 0))
    build = lambda: head(released, isr=dict(k=2., bias=0.))
    first = run(build(), objects, same_class=True)[1]
    assert any(not torch.allclose(first[k], v, rtol=1e-2, atol=1e-6) for order in orders
               for k, v in run(build(), objects, order=order, same_class=True)[1].items())


@HEADS
@pytest.mark.parametrize('objects,classes', [((0,), 3), ((0, 0), 3), ((1,), 1), ((0, 1), 1), ((6, 0, 1), 2)])
@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_odd_scenes(head, standard, objects, classes, keys):
    losses, grads = run(head(classes=classes, **keys), objects, classes)
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())


@HEADS
def test_an_image_that_is_all_crowd(head, standard):
    "Every anchor is ignored in an image without an object whose crowd region covers it"
    x, (gts, metas, _) = dense_scene((3, 0))
    regions = torch.zeros(0, 4), torch.tensor([[-64., -64, 192, 192]])
    crowd = [InstanceData(bboxes=b, labels=torch.zeros(len(b), dtype=torch.long)) for b in regions]
    values = []
    for module in (head(standard), head(**ISR, **CARL)):
        losses = module.loss_by_feat(*module(x), gts, metas, crowd)
        values.append({k: sum(v).sum() if isinstance(v, list) else v.sum() for k, v in losses.items()})
    close(*values)


@HEADS
def test_weights_of_positives_follow_their_own_ground_truth(head, standard, monkeypatch):
    "The rows taken for positives are those that the assigner meant: box, label and IoU belong together"
    seen = []
    real = single.prime_weights
    monkeypatch.setattr(single, 'prime_weights', lambda pos, *a: seen.append(pos) or real(pos, *a))
    run(head(**ISR), (4, 0, 3), height=96)
    pos, = seen
    assert len(pos.label) > 10 and len(set(pos.gt.tolist())) == 7
    overlap = bbox_overlaps(pos.prior, pos.gt_box, is_aligned=True)
    best = [overlap[pos.gt == g].max() for g in pos.gt.unique()]
    assert overlap.min() > 0 and min(best) > 0.3
    for g in pos.gt.unique(): assert len(pos.label[pos.gt == g].unique()) == 1 and len(pos.gt_box[pos.gt == g].unique(dim=0)) == 1


@HEADS
def test_testing_is_mmdets(head, standard):
    "mmdet's SSDHead lacks the `loss_cls` that mmdet asks it for in testing; it is lent one here"
    x, (_, metas, _) = dense_scene((2, 1))
    cfg = ConfigDict(nms_pre=100, min_bbox_size=0, score_thr=0.02, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)
    predict = lambda module: module.predict_by_feat(*module(x), batch_img_metas=metas, cfg=cfg, rescale=False)
    ours, theirs = head(**ISR, **CARL).eval(), head(standard).eval()
    if head is ssd:
        with pytest.raises(AttributeError, match='loss_cls'): predict(theirs)
        theirs.loss_cls = None
    for a, b in zip(predict(ours), predict(theirs)):
        assert len(a) and torch.equal(a.bboxes, b.bboxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)


# ---- refusals

@HEADS
def test_unknown_keys_are_refused_at_once(head, standard):
    refused(lambda: head(carl=dict(bias=0.2)), 'does not know')


@HEADS
def test_values_out_of_range_are_refused_at_once(head, standard):
    refused(lambda: head(isr=dict(gamma=-1)), 'isr.gamma must be at least 0')
    refused(lambda: head(carl=dict(k=0)), 'carl.k must be above 0')


@pytest.mark.parametrize('build', [partial(retina, head=dict(loss_bbox=dict(type='GIoULoss'))), partial(ssd, head=dict(loss_bbox=dict(type='GIoULoss'))),
                                   partial(atss, head=dict(reg_decoded_bbox=False))], ids=['retina', 'ssd', 'atss'])
def test_an_iou_of_deltas_is_refused(build):
    refused(build, 'GIoULoss compares boxes, not deltas')


@pytest.mark.parametrize('head', [retina, atss])
def test_mining_needs_an_roi_head(head):
    refused(lambda: head(sampler=dict(type='PrimeSampler', num=64, neg='H*')), 'mines with an RoI head')


@pytest.mark.parametrize('head', [retina, ssd, atss])
def test_objects_at_the_border(head):
    "Ground truths that touch the image's edges, anchors that reach beyond them: the value of the box loss is kept, gradients are finite"
    (losses, grads), (expected, _) = (run(head(**keys), (3, 0, 2), border=True) for keys in (dict(isr=dict(), carl=dict()), {}))
    torch.testing.assert_close(losses['loss_bbox'], expected['loss_bbox'], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses['loss_cls'], expected['loss_cls'], rtol=1e-4, atol=1e-6)
    assert all(g.isfinite().all() for g in grads.values())
