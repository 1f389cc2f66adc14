"PrimeRetinaHead and PrimeSSDHead against mmdet's own heads, and where those are wrong against what must hold"
import pytest
import torch

pytest.importorskip('mmdet')
import pisa.single_stage as single
from toy import dense_run, retina, ssd

ISR, CARL, ADD = dict(isr=dict()), dict(carl=dict()), dict(carl=dict(form='add', b=0.2))
HEADS = pytest.mark.parametrize('head,standard,released', [(retina, 'RetinaHead', 'PISARetinaHead'), (ssd, 'SSDHead', 'PISASSDHead')],
                                ids=['retina', 'ssd'])


def close(a, b, rtol=1e-4, atol=1e-6):
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=rtol, atol=atol, msg=lambda m: f'{k}: {m}')


@HEADS
@pytest.mark.parametrize('objects', [(3, 2), (1, 0, 4), (0, 0)])
def test_both_off_is_mmdets_head(head, standard, released, objects):
    for off, plain in zip(dense_run(head(), objects), dense_run(head(standard), objects)): close(off, plain, 0, 0)


@HEADS
def test_agrees_with_mmdets_pisa_where_that_is_right(head, standard, released):
    "One class (so n_j is the largest n), two images, the added CARL"
    ours = dense_run(head(classes=1, isr=dict(gamma=2., beta=0.), carl=dict(k=1., b=0.2, form='add')), classes=1)
    theirs = dense_run(head(released, classes=1, isr=dict(k=2., bias=0.), carl=dict(k=1., bias=0.2)), classes=1)
    close(ours[0], theirs[0])
    close(ours[1], theirs[1], 1e-3, 1e-6)


@HEADS
@pytest.mark.parametrize('keys', [ISR, CARL, {**ISR, **CARL}], ids=['isr', 'carl', 'both'])
@pytest.mark.parametrize('more', [dict(), dict(ignored=True), dict(pad=40)], ids=['plain', 'ignored', 'padding'])
def test_v1_changes_gradients_but_no_value(head, standard, released, keys, more):
    "Eq. 3 and Eq. 4 (v1) preserve the totals, also with ignored regions and with anchors in the padding"
    plain, prime = dense_run(head(standard), (3, 1, 2), **more), dense_run(head(**keys), (3, 1, 2), **more)
    close(plain[0], prime[0])
    assert any(not torch.allclose(plain[1][k], prime[1][k], rtol=1e-3) for k in plain[1])
    assert all(torch.isfinite(g).all() for g in prime[1].values())


@pytest.mark.parametrize('kind', ['IoULoss', 'GIoULoss'])
@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_retina_with_a_loss_on_boxes(kind, keys):
    box = dict(box_loss=dict(type=kind), decoded=True)
    plain, prime = dense_run(retina('RetinaHead', **box)), dense_run(retina(**box, **keys))
    for k in plain[0]: torch.testing.assert_close(plain[0][k], prime[0][k], rtol=1e-4, atol=1e-6)
    if 'loss_carl' in prime[0]: assert 0 < prime[0]['loss_carl'] < 2 * plain[0]['loss_bbox']


@HEADS
@pytest.mark.parametrize('keys', [ISR, {**ISR, **CARL}, {**ISR, **ADD}], ids=['isr', 'replace', 'add'])
def test_order_of_images_does_not_matter_and_the_released_heads_fail_it(head, standard, released, keys):
    "Objects of different images never share a group; in the released code they do from three images on"
    objects, orders = (1, 3, 1, 2), ((2, 0, 3, 1), (3, 2, 1, 0))
    first = dense_run(head(**keys), objects, same_class=True)
    for order in orders:
        other = dense_run(head(**keys), objects, order=order, same_class=True)
        close(first[0], other[0])
        close(first[1], other[1], 1e-3, 1e-6)
    build = lambda: head(released, isr=dict(k=2., bias=0.))
    first = dense_run(build(), objects, same_class=True)[1]
    assert any(not torch.allclose(first[k], v, rtol=1e-2, atol=1e-6) for order in orders
               for k, v in dense_run(build(), objects, order=order, same_class=True)[1].items())


@HEADS
@pytest.mark.parametrize('objects,classes', [((0,), 3), ((0, 0), 3), ((1,), 1), ((0, 1), 1), ((6, 0, 1), 2)])
@pytest.mark.parametrize('keys', [{**ISR, **CARL}, {**ISR, **ADD}], ids=['replace', 'add'])
def test_odd_scenes(head, standard, released, objects, classes, keys):
    losses, grads = dense_run(head(classes=classes, **keys), objects, classes)
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())


@HEADS
def test_weights_of_positives_follow_their_own_ground_truth(head, standard, released, monkeypatch):
    "The rows taken for positives are those that the assigner meant: box, label and IoU belong together"
    from mmdet.structures.bbox import bbox_overlaps
    seen = []
    real = single.reweighted
    monkeypatch.setattr(single, 'reweighted', lambda pos, *a: seen.append(pos) or real(pos, *a))
    dense_run(head(**ISR), (4, 0, 3), pad=48)
    pos, = seen
    assert len(pos.label) > 10 and len(set(pos.gt.tolist())) == 7
    overlap = bbox_overlaps(pos.prior, pos.gt_box, is_aligned=True)
    best = [overlap[pos.gt == g].max() for g in pos.gt.unique()]
    assert overlap.min() > 0 and min(best) > 0.3
    for g in pos.gt.unique(): assert len(pos.label[pos.gt == g].unique()) == 1 and len(pos.gt_box[pos.gt == g].unique(dim=0)) == 1


@HEADS
def test_unknown_keys_are_refused_at_once(head, standard, released):
    with pytest.raises(ValueError, match='does not know'): head(carl=dict(bias=0.2))
