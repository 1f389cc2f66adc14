"PrimeRoIHead against mmdet's own heads, and where those are wrong against what must hold"
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.models.losses import pisa_loss
import pisa.mmdet
from refusal import refused
from small import RANDOM, cascade_head, roi_head, run, scene

ISR, CARL, ADD = dict(isr=dict()), dict(carl=dict()), dict(carl=dict(form='add', b=0.2))
ALL = dict(type='RandomSampler', num=100_000, pos_fraction=0.5)  # takes every RoI, so nothing is left to chance
DECODED = dict(reg_decoded_bbox=True)
SCORE_HLR = dict(type='ScoreHLRSampler', num=64, pos_fraction=0.25, add_gt_as_proposals=True)


def close(a, b, **tol):
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], msg=lambda m: f'{k}: {m}', **tol)


@pytest.mark.parametrize('masks', [False, True])
@pytest.mark.parametrize('objects', [(3, 2), (1, 0, 4), (0, 0)])
def test_both_off_is_the_standard_head(masks, objects):
    off, standard = run(roi_head(masks=masks), objects), run(roi_head('StandardRoIHead', masks=masks), objects)
    close(off[0], standard[0], rtol=0, atol=0)
    close(off[1], standard[1], rtol=0, atol=0)


def test_prediction_is_the_standard_heads():
    x, proposals, samples = scene()
    for p in proposals: p.scores = torch.ones(len(p))
    heads = roi_head(**ISR, **CARL), roi_head('StandardRoIHead')
    heads[1].load_state_dict(heads[0].state_dict())
    a, b = (h.eval().predict(x, [p.clone() for p in proposals], samples, rescale=False) for h in heads)
    for r, s in zip(a, b): assert torch.equal(r.bboxes, s.bboxes) and torch.equal(r.scores, s.scores)


@pytest.mark.parametrize('agnostic', [False, True])
def test_agrees_with_mmdets_pisa_where_that_is_right(agnostic):
    "One class (so n_j is the largest n), two images, the added CARL, its sampler"
    shared = dict(classes=1, sampler=SCORE_HLR, box_head=dict(reg_class_agnostic=agnostic))
    ours = run(roi_head(**shared, isr=dict(gamma=2., beta=0.), carl=dict(k=1., b=0.2, form='add')), (3, 2), 1)
    theirs = run(roi_head('PISARoIHead', **shared, isr=dict(k=2., bias=0.), carl=dict(k=1., bias=0.2)), (3, 2), 1)
    close(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
    close(ours[1], theirs[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('key', [ISR, CARL, {**ISR, **CARL}])
@pytest.mark.parametrize('box', [dict(type='SmoothL1Loss'), dict(type='L1Loss'), dict(type='IoULoss'), dict(type='GIoULoss', loss_weight=2.0)],
                         ids=lambda b: b['type'])
@pytest.mark.parametrize('agnostic', [False, True])
def test_v1_changes_gradients_but_no_value(key, box, agnostic):
    "Eq. 3 and Eq. 4 (v1) preserve the totals"
    decoded = DECODED if 'IoU' in box['type'] else {}
    build = lambda **k: roi_head(box_head=dict(loss_bbox=box, reg_class_agnostic=agnostic, **decoded), **k)
    plain, prime = run(build()), run(build(**key))
    close(plain[0], prime[0], rtol=1e-5, atol=1e-6)
    weight = 'bbox_head.fc_cls.weight'
    assert not torch.allclose(plain[1][weight], prime[1][weight], rtol=1e-3)
    assert all(torch.isfinite(g).all() for g in prime[1].values() if g is not None)


def test_released_carl_explodes_with_giou_ours_does_not():
    "A loss per box times a column of weights is N x N there"
    box = dict(box_head=dict(loss_bbox=dict(type='GIoULoss'), **DECODED))
    plain, ours = run(roi_head(**box)), run(roi_head(**box, **ADD))
    assert ours[0]['loss_carl'] < 2 * plain[0]['loss_bbox']
    n, giou = 50, torch.nn.Module()
    giou.forward = lambda pred, target, reduction_override=None: torch.full((len(pred),), 0.14)
    logits, labels = torch.zeros(n, 4), torch.arange(n) % 3
    released = pisa_loss.carl_loss(logits, labels, torch.zeros(n, 4), torch.zeros(n, 4), giou, num_class=3)['loss_carl']
    assert released > 40 * 0.14


@pytest.mark.parametrize('sampler', ['RandomSampler', 'OHEMSampler', 'InstanceBalancedPosSampler', 'IoUBalancedNegSampler', 'ScoreHLRSampler'])
@pytest.mark.parametrize('keys', [{}, ISR, CARL, ADD, {**ISR, **ADD}], ids=lambda k: '+'.join(k) or 'off')
def test_any_sampler(sampler, keys):
    losses, grads = run(roi_head(sampler=dict(type=sampler, num=32, pos_fraction=0.25), **keys), (3, 0, 2))
    assert ('loss_carl' in losses) == (keys.get('carl', {}).get('form') == 'add')
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(g).all() for g in grads.values() if g is not None)


def test_an_image_without_negatives():
    "mmdet's Score-HLR sampler gives no weights for it; the losses are those without such weights for this image"
    head = roi_head(sampler=dict(type='ScoreHLRSampler', num=64, pos_fraction=0.25), **ISR, **CARL)
    x, proposals, samples = scene((3, 2))
    proposals[1] = proposals[1][:0]  # its samples are its own objects
    losses = head.loss(x, proposals, samples)
    assert all(torch.isfinite(v) for v in losses.values()) and losses['loss_cls'] > 0


def test_one_sampler():
    with pytest.raises(UnboundLocalError): run(roi_head('PISARoIHead', sampler=RANDOM, isr=dict(k=2, bias=0)))


@pytest.mark.parametrize('keys', [ISR, {**ISR, **CARL}, {**ISR, **ADD}], ids=['isr', 'replace', 'add'])
def test_order_of_images_does_not_matter(keys):
    "Objects of different images never share a group: with offsets from the previous image alone they do, from three images on"
    objects = (1, 3, 1, 2)
    first = run(roi_head(sampler=ALL, **keys), objects, same_class=True)
    for order in ((2, 0, 3, 1), (3, 2, 1, 0)):
        other = run(roi_head(sampler=ALL, **keys), objects, order=order, same_class=True)
        close(first[0], other[0], rtol=1e-4, atol=1e-6)
        close(first[1], other[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('objects,classes', [((0,), 3), ((0, 0), 3), ((1,), 1), ((0, 1), 1), ((6, 0, 1), 2)])
@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_odd_scenes(objects, classes, keys):
    losses, grads = run(roi_head(classes=classes, masks=True, **keys), objects, classes)
    assert all(torch.isfinite(v) for v in losses.values())
    for name, g in grads.items():
        if 'bbox_head' in name: assert g is not None and torch.isfinite(g).all(), name


def test_infinite_logit_without_positives_stays_finite():
    "The released CARL multiplies all logits by zero there, which an infinite one turns into NaN"
    logits = torch.tensor([[float('inf'), 0., 0., 0.]])
    released = pisa_loss.carl_loss(logits, torch.tensor([3]), torch.zeros(1, 4), torch.zeros(1, 4), None, num_class=3)['loss_carl']
    assert released.isnan().all()
    head = roi_head(**ADD)
    with torch.no_grad(): head.bbox_head.fc_cls.bias[0] = float('inf')
    losses, _ = run(head, (0,))
    assert losses['loss_carl'] == 0


@pytest.mark.parametrize('dtype', [torch.bfloat16])
def test_mixed_precision(dtype):
    with torch.autocast('cpu', dtype=dtype):
        losses, grads = run(roi_head(**ISR, **CARL))
    plain, _ = run(roi_head())
    for k in plain: torch.testing.assert_close(losses[k].float(), plain[k], rtol=0.05, atol=0.02)
    assert all(torch.isfinite(g).all() for g in grads.values() if g is not None)


def test_detach_sends_no_gradient_to_the_scores():
    "Model (b) of Section 5.3 (v1): with the scores detached, CARL leaves the classifier's gradient as it was"
    weight = 'bbox_head.fc_cls.weight'
    plain, a, b = (run(roi_head(**k))[1][weight] for k in ({}, CARL, dict(carl=dict(detach=True))))
    torch.testing.assert_close(plain, b)
    assert not torch.allclose(plain, a, rtol=1e-3)


HEADS = pytest.mark.parametrize('head,plain', [(roi_head, 'StandardRoIHead'), (cascade_head, 'CascadeRoIHead')], ids=['one stage', 'cascade'])


CROWD = [[0., 0, 128, 70], [40., 0, 128, 128], [0., 60, 128, 128]]

@HEADS
@pytest.mark.parametrize('keys', [{}, ISR, CARL, {**ISR, **CARL}, {**ISR, **ADD}], ids=['off', 'isr', 'carl', 'replace', 'add'])
def test_ignored_ground_truths(head, plain, keys):
    "Crowd regions go through the loss as in mmdet's head: the values are its values (Eq. 3 and 4, v1), and others than without the regions"
    crowded = lambda h: run(h, (3, 0, 2), crowd=CROWD)
    (losses, grads), (expected, _) = crowded(head(sampler=ALL, **keys)), crowded(head(plain, sampler=ALL))
    for k, v in expected.items(): torch.testing.assert_close(losses[k], v, rtol=1e-5, atol=1e-6)
    assert all(torch.isfinite(v) for v in losses.values()) and all(g is None or torch.isfinite(g).all() for g in grads.values())
    free = run(head(sampler=ALL, **keys), (3, 0, 2))[0]
    assert not any(torch.isclose(losses[k], free[k], rtol=1e-3) for k in free if k.endswith('loss_cls'))  # the regions matter


@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_isr_ranks_no_ignored_proposal(keys, monkeypatch):
    "What is ranked are the positives of the sampler, which lie in no crowd region"
    import pisa.mmdet.two_stage as t
    seen, real = [], t.prime_weights
    monkeypatch.setattr(t, 'prime_weights', lambda pos, *a: seen.append(pos) or real(pos, *a))
    for crowd in (None, CROWD): run(roi_head(sampler=dict(ALL, add_gt_as_proposals=False), **keys), (3, 0, 2), crowd=crowd)
    free, pos = seen
    assert 0 < len(pos.label) < len(free.label)
    for box, image in zip(pos.prior.tolist(), pos.image.int().tolist()):
        x1, y1, x2, y2 = (f(a, b) for f, a, b in zip((max, max, min, min), box, CROWD[image]))
        assert max(x2 - x1, 0) * max(y2 - y1, 0) <= 0.5 * (box[2] - box[0]) * (box[3] - box[1])


@HEADS
@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_an_image_that_is_all_crowd(head, plain, keys):
    "No proposal of it is taken; with every image so, there is nothing to train the box head on but the ground truths"
    for objects in ((3, 0), (2, 1)):
        losses, grads = run(head(**keys), objects, crowd=[[-64., -64, 192, 192]] * 2)
        assert all(torch.isfinite(v) for v in losses.values()) and all(torch.isfinite(g).all() for g in grads.values() if g is not None)


@pytest.mark.parametrize('objects,classes', [((0,), 3), ((0, 0), 3), ((0, 0, 0), 1), ((1,), 1), ((0, 1), 1), ((6, 0, 1), 2)])
@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_odd_scenes_in_a_cascade(objects, classes, keys):
    "No ground truth in any image, and one class: losses and gradients of every stage are finite, and those of mmdet's without positives"
    losses, grads = run(cascade_head(classes=classes, **keys), objects, classes)
    assert all(torch.isfinite(v) for v in losses.values())
    for name, g in grads.items(): assert g is not None and torch.isfinite(g).all(), name
    expected, _ = run(cascade_head('CascadeRoIHead', classes=classes), objects, classes)
    if not sum(objects): close({k: v for k, v in losses.items() if k in expected}, expected, rtol=1e-5, atol=1e-6)
    for i in (0, 1): assert losses.get(f's{i}.loss_carl', torch.tensor(0.)) == 0 or sum(objects)


@pytest.mark.parametrize('head', [roi_head, cascade_head])
@pytest.mark.parametrize('keys,text', [
    (dict(isr=dict(gamma=-1)), 'isr.gamma must be at least 0, not -1'), (dict(isr=dict(gamma=float('nan'))), 'isr.gamma must be at least 0, not nan'),
    (dict(isr=dict(gamma='two')), "isr.gamma must be a number, not 'two'"), (dict(isr=dict(beta=1.)), 'isr.beta must be in [0, 1), not 1.0'),
    (dict(isr=dict(beta=None)), 'isr.beta must be a number, not None'), (dict(carl=dict(k=0)), 'carl.k must be above 0, not 0'),
    (dict(carl=dict(k=-1)), 'carl.k must be above 0, not -1'), (dict(carl=dict(b=-.1)), 'carl.b must be in [0, 1), not -0.1')])
def test_values_out_of_range_are_refused_at_once(head, keys, text):
    refused(lambda: head(**keys), text)


@pytest.mark.parametrize('head', [roi_head, cascade_head])
@pytest.mark.parametrize('kind', ['IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss'])
def test_an_iou_of_deltas_is_refused(head, kind):
    loss = dict(loss_bbox=dict(type=kind))
    for keys in ({}, ISR, {**ISR, **CARL}): refused(lambda: head(box_head=loss, **keys), f'{kind} compares boxes, not deltas: set reg_decoded_bbox=True')
    losses, _ = run(head(box_head=loss | DECODED, **ISR, **CARL))
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize('wrong', [dict(isr=dict(k=2)), dict(isr=dict(bias=0)), dict(carl=dict(bias=0.2)), dict(carl=dict(gamma=2))])
def test_unknown_keys_are_refused_at_once(wrong):
    with pytest.raises(ValueError, match='does not know|is not known'): roi_head(**wrong)


@pytest.mark.parametrize('objects', [(3, 2), (1, 0, 4)])
def test_cascade(objects):
    "Both off is mmdet's cascade; on, the first stage keeps its losses (Eq. 3 and 4, v1), 'add' has a third in each stage, and gradients differ"
    standard, off = run(cascade_head('CascadeRoIHead'), objects), run(cascade_head(), objects)
    for a, b in zip(standard, off): close(a, b, rtol=0, atol=0)
    on = run(cascade_head(**ISR, **CARL), objects)
    for k, v in standard[0].items():
        if k.startswith('s0.'): torch.testing.assert_close(on[0][k], v, rtol=1e-5, atol=1e-6)
    assert all(not torch.allclose(standard[1][f'bbox_head.{i}.fc_cls.weight'], on[1][f'bbox_head.{i}.fc_cls.weight'], rtol=1e-3) for i in (0, 1))
    assert {'s0.loss_carl', 's1.loss_carl'} < run(cascade_head(**ISR, **ADD), objects)[0].keys()
    with pytest.raises(ValueError, match='does not know'): cascade_head(carl=dict(bias=0.2))


@pytest.mark.parametrize('sampler,theirs', [('RandomSampler', 'RandomSampler'), ('PrimeSampler', 'RandomSampler'),
                                            ('OHEMSampler', 'OHEMSampler'), ('IoUBalancedNegSampler', 'IoUBalancedNegSampler')])
def test_a_cascade_with_both_off_is_mmdets(sampler, theirs):
    "Any sampler draws the same random numbers; with mask heads too, and crowd regions"
    def build(kind, sampler): return cascade_head(kind, sampler=dict(type=sampler, num=32, pos_fraction=0.25), masks=True)
    ours, standard = (run(build(*k), (3, 0, 2), crowd=CROWD) for k in (('PrimeCascadeRoIHead', sampler), ('CascadeRoIHead', theirs)))
    assert {'s0.loss_mask', 's1.loss_mask', 's1.loss_bbox'} <= standard[0].keys()
    for a, b in zip(ours, standard): close(a, b, rtol=0, atol=0)


def test_a_cascade_without_any_roi_ends_after_its_first_stage():
    x, proposals, samples = scene((0, 0))
    empty = lambda: [p[:0].clone() for p in proposals]
    ours, theirs = (cascade_head(kind).loss(x, empty(), samples) for kind in ('PrimeCascadeRoIHead', 'CascadeRoIHead'))
    assert {k[:2] for k in theirs} == {'s0'}
    close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize('head,plain', [(roi_head, 'StandardRoIHead'), (cascade_head, 'CascadeRoIHead')])
def test_objects_at_the_border(head, plain):
    "Ground truths that touch the image's edges, proposals that reach beyond them: the values of the losses are kept, gradients are finite"
    (losses, grads), (expected, _) = (run(h, (3, 0, 2), border=True) for h in (head(isr=dict(), carl=dict()), head(plain)))
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    assert all(g.isfinite().all() for g in grads.values())
