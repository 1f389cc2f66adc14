"PrimeSampler against loops written out here, mmdet's samplers and mmcv's nms_match"
import contextlib
import pytest
import torch
from refusal import refused

pytest.importorskip('mmdet')
from mmcv.ops import nms_match as mmcv_nms_match
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from pisa.lab.speed import RoundedProducts
from pisa.mmdet.samplers import PrimeSampler, nms_match, take_ranked
from pisa.mmdet.two_stage import sample_rois
from small import cascade_head, roi_head, run, scene

PISA = dict(isr=dict(), carl=dict())
TABLE_3 = {'R/R': ('R', 'R', {}), 'H*/R': ('H*', 'R', {}), 'C/R': ('R', 'R', PISA), 'H/H': ('H', 'H', {}),
           'H*/H*': ('H*', 'H*', {}), 'R/H*': ('R', 'H*', {}), 'C/H*': ('R', 'H*', PISA)}
MINING = [('H', 'H'), ('H*', 'H*'), ('H*', 'R'), ('R', 'H*'), ('R', 'score_hlr'), ('H*', 'score_hlr')]


def prime(pos='R', neg='R', num=16, **kwargs):
    return dict(type='PrimeSampler', num=num, pos_fraction=0.25, pos=pos, neg=neg, **kwargs)


def build(sampler, kind='PrimeRoIHead', **kwargs):
    "A small head whose class scores and regressed boxes are far apart"
    cascade = 'Cascade' in kind
    head = (cascade_head if cascade else roi_head)(kind, sampler=sampler, **kwargs)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for box_head in head.bbox_head if cascade else [head.bbox_head]:
            for fc, std in ((box_head.fc_cls, 5), (box_head.fc_reg, 2)): fc.weight.copy_(torch.randn(fc.weight.shape, generator=g) * std)
    return head


def sample(head, objects=(3, 2), crowd=None, order=None):
    "Results, weights and what the assigner says of the candidates (ground truths first)"
    torch.manual_seed(1)
    x, proposals, samples = scene(objects, order=order)
    gts = [s.gt_instances for s in samples]
    results, weights = sample_rois(head.bbox_assigner, head.bbox_sampler, x, [p.clone() for p in proposals], gts, [crowd] * len(gts))
    for p in proposals: p.priors = p.pop('bboxes')
    assigned = [head.bbox_assigner.assign(p, g, crowd) for p, g in zip(proposals, gts)]
    for a, g in zip(assigned, gts): a.add_gt_(g.labels) if len(g) else None
    boxes = [torch.cat([g.bboxes, p.priors]) for p, g in zip(proposals, gts)]
    return results, weights, assigned, boxes, x


def losses(head, assigned, boxes, x):
    "Classification loss of every candidate, image by image: - log of the softmax"
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(assigned, boxes)):
            logits = head._bbox_forward(tuple(level[i:i + 1] for level in x), bbox2roi([b]))['cls_score']
            label = torch.where(a.gt_inds > 0, a.labels, torch.tensor(3))
            yield [-logits[j].log_softmax(0)[label[j]].item() for j in range(len(b))]


def ids(t): return sorted(t.tolist())


def images(x): return [tuple(level[i:i + 1] for level in x) for i in range(len(x[0]))]


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('thr', [0.3, 0.5, 0.7])
def test_nms_match_makes_mmcvs_clusters(seed, thr):
    g = torch.Generator().manual_seed(seed)
    n = 300
    xy = torch.rand(n, 2, generator=g) * 25
    boxes = torch.cat([xy, xy + 10 + torch.rand(n, 2, generator=g) * 30], 1)
    scores, image = torch.randperm(n, generator=g) / n, torch.randint(4, (n,), generator=g)
    image[image == 2] = 3  # one image has no boxes
    wanted = set()
    for i in image.unique():
        rows = (image == i).nonzero()[:, 0]
        wanted |= {frozenset(rows[m].tolist()) for m in mmcv_nms_match(torch.cat([boxes[rows], scores[rows, None]], 1), thr)}
    cluster = nms_match(boxes, scores, thr, image)
    assert {frozenset((cluster == c).nonzero()[:, 0].tolist()) for c in cluster.unique()} == wanted
    best = torch.stack([scores[cluster == c].max() for c in cluster])
    assert torch.equal(scores[cluster], best)  # a cluster has the name of its best box
    assert 10 < len(wanted) < 0.95 * n


def test_nms_match_of_nothing_and_of_boxes_without_area():
    none = nms_match(torch.zeros(0, 4), torch.zeros(0), 0.5, torch.zeros(0, dtype=torch.long))
    assert none.shape == (0,) and none.dtype == torch.long
    flat = nms_match(torch.tensor([[5., 5, 5, 5]]).repeat(3, 1), torch.rand(3), 0.5, torch.zeros(3, dtype=torch.long))
    assert flat.tolist() == [0, 1, 2]


@pytest.mark.parametrize('num', [8, 16, 40])
def test_h_takes_the_highest_losses_of_all(num):
    head = build(prime('H', 'H', num))
    results, weights, assigned, boxes, x = sample(head)
    assert weights is None
    shares = set()
    for r, a, loss in zip(results, assigned, losses(head, assigned, boxes, x)):
        hard = sorted(range(len(loss)), key=lambda j: -loss[j])[:num]
        assert ids(torch.cat([r.pos_inds, r.neg_inds])) == sorted(hard)
        assert all(a.gt_inds[r.pos_inds] > 0) and all(a.gt_inds[r.neg_inds] == 0)
        shares.add(len(r.pos_inds))
    assert any(s != num // 4 for s in shares)  # the ratio is not fixed


@pytest.mark.parametrize('num', [16, 40, 64])
def test_h_star_is_mmdets_ohem(num):
    ours, theirs = (sample(build(s))[0] for s in (prime('H*', 'H*', num), dict(type='OHEMSampler', num=num, pos_fraction=0.25)))
    for r, s in zip(ours, theirs):
        assert torch.equal(r.pos_inds, s.pos_inds) and torch.equal(r.neg_inds, s.neg_inds)
        assert torch.equal(r.priors, s.priors) and torch.equal(r.pos_gt_bboxes, s.pos_gt_bboxes) and torch.equal(r.pos_is_gt, s.pos_is_gt)


@pytest.mark.parametrize('pos,neg', [('H*', 'R'), ('R', 'H*'), ('H*', 'H*')])
def test_h_star_mines_one_sign_apart(pos, neg):
    head = build(prime(pos, neg))
    results, _, assigned, boxes, x = sample(head, (3, 0, 2))
    for r, a, loss in zip(results, assigned, losses(head, assigned, boxes, x)):
        for rule, taken, all_ in ((pos, r.pos_inds, a.gt_inds > 0), (neg, r.neg_inds, a.gt_inds == 0)):
            all_ = all_.nonzero()[:, 0].tolist()
            hard = sorted(sorted(all_, key=lambda j: -loss[j])[:len(taken)])
            assert (ids(taken) == hard) == (rule == 'H*' or len(taken) == len(all_))
        assert len(r.pos_inds) + len(r.neg_inds) == 16


@pytest.mark.parametrize('num,thr', [(16, 0.05), (16, 0.5), (30, 0.5), (30, 0.7), (30, 0.9999)])
def test_score_hlr_is_mmdets(num, thr):
    "The same negatives with the same weights: more, fewer and none above the score threshold than the budget"
    ours = sample(build(prime('R', 'score_hlr', num, hlr=dict(score_thr=thr))), (2,))
    theirs = sample(build(dict(type='ScoreHLRSampler', num=num, pos_fraction=0.25, score_thr=thr)), (2,))
    (r,), (w,), (s,), (v,) = *ours[:2], *theirs[:2]
    order, other = r.neg_inds.sort()[1], s.neg_inds.sort()[1]
    assert torch.equal(r.neg_inds[order], s.neg_inds[other])
    torch.testing.assert_close(w[order], v[other], rtol=1e-5, atol=1e-6)
    assert ids(r.pos_inds) == ids(s.pos_inds) and len(r.neg_inds) < (ours[2][0].gt_inds == 0).sum()
    assert (w.std() == 0) == (thr == 0.9999)


def test_released_score_hlr_confuses_close_scores():
    "Rank and score are added into one float32 there, which rounds the score away: 4,001 clusters, two scores that differ by 1e-5"
    n = 4001
    score = torch.linspace(0.1, 0.9, n)
    score[1] = score[0] + 1e-5
    released = n - 0 + score
    assert released[0] == released[1] and score[0] < score[1]
    from pisa.mmdet.samplers import negative_ranks
    apart = torch.arange(n)[:, None] * 10. + torch.tensor([0., 0, 5, 5])
    rank = negative_ranks(score, apart, torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool))
    assert rank[1] == rank[0] - 1


@pytest.mark.parametrize('power,bias', [(0.5, 0.), (2., 0.2), (0., 0.)])
def test_taken_negatives_keep_their_summed_loss(power, bias):
    g = torch.Generator().manual_seed(0)
    rank, loss = torch.full((50,), -1), torch.rand(50, generator=g)
    rank[torch.randperm(50, generator=g)[:20]] = torch.randperm(20, generator=g)
    for num in (0, 5, 20, 30, 80):
        chosen, weight = take_ranked(rank, loss, num, power, bias)
        assert len(set(chosen.tolist())) == min(num, 50)
        assert rank[chosen[:20]].tolist() == list(range(min(num, 20)))
        torch.testing.assert_close((weight * loss[chosen]).sum(), loss[chosen].sum())
        if num: torch.testing.assert_close(weight[min(num, 20) - 1:], weight[-1:].expand(len(weight[min(num, 20) - 1:])))
        n = max(min(num, 50), 20)
        u = torch.arange(n, 0, -1)[:min(num, 20)] / n
        if num: torch.testing.assert_close(weight[:20] / weight[0], (((1 - bias) * u + bias) / 1.)**power)


@pytest.mark.parametrize('pos,neg', MINING)
def test_one_forward_for_all_images_and_for_what_is_compared(pos, neg, monkeypatch):
    head, calls = build(prime(pos, neg)), []
    forward = head._bbox_forward
    monkeypatch.setattr(head, '_bbox_forward', lambda x, rois: calls.append(rois) or forward(x, rois))
    results, _, assigned, _, _ = sample(head, (3, 2, 0, 1))
    (rois,) = calls
    for i, a in enumerate(assigned):
        num_pos, num_neg = (a.gt_inds > 0).sum(), (a.gt_inds == 0).sum()
        seen = num_pos * (pos != 'R' and num_pos > 4 or pos == 'H') + num_neg * (neg != 'R')
        assert (rois[:, 0] == i).sum() == seen


def test_no_forward_where_nothing_is_compared(monkeypatch):
    for sampler in (prime('R', 'R'), prime('H', 'H', 1000), prime('H*', 'H*', 1000), prime('H*', 'R', 1000)):
        head = build(sampler)
        monkeypatch.setattr(head, '_bbox_forward', None)
        results = sample(head)[0]
        if sampler['num'] == 1000: assert all(len(r.neg_inds) + len(r.pos_inds) < 1000 for r in results)


@pytest.mark.parametrize('pos,neg', MINING)
def test_all_images_at_once_are_as_one_by_one(pos, neg):
    head = build(prime(pos, neg, num=60, hlr=dict(score_thr=0.) if neg == 'score_hlr' else None))
    x, proposals, samples = scene((3, 0, 2))
    gts = [s.gt_instances for s in samples]
    for p in proposals: p.priors = p.pop('bboxes')
    assign = lambda: [head.bbox_assigner.assign(p, g) for p, g in zip(proposals, gts)]
    torch.manual_seed(0)
    at_once, weights = head.bbox_sampler.sample_batch(assign(), proposals, gts, x)
    torch.manual_seed(0)
    for i, (a, p, g, feats) in enumerate(zip(assign(), proposals, gts, images(x))):
        one = head.bbox_sampler.sample(a, p, g, feats=feats)
        if neg == 'score_hlr':
            one, weight = one
            torch.testing.assert_close(weight, weights[i], rtol=1e-4, atol=1e-6)
        assert torch.equal(one.pos_inds, at_once[i].pos_inds) and torch.equal(one.neg_inds, at_once[i].neg_inds)


@pytest.mark.parametrize('pos,neg', [('H', 'H'), ('H*', 'H*'), ('H*', 'score_hlr')])
def test_order_of_images_does_not_matter(pos, neg):
    sampler = prime(pos, neg, num=30, hlr=dict(score_thr=0.) if neg == 'score_hlr' else None)  # no threshold: nothing is filled in at random
    first, weights, *_ = sample(build(sampler), (1, 3, 0, 2))
    order = (2, 0, 3, 1)
    other, other_weights, *_ = sample(build(sampler), (1, 3, 0, 2), order=order)
    for i, r in zip(order, other):
        assert torch.equal(r.pos_inds, first[i].pos_inds) and torch.equal(r.neg_inds, first[i].neg_inds)
    if neg == 'score_hlr':
        for i, w in zip(order, other_weights): torch.testing.assert_close(w, weights[i], rtol=1e-4, atol=1e-6)


def test_random_is_mmdets_random():
    shared = dict(num=16, pos_fraction=0.25)
    for keys in ({}, PISA):
        ours, theirs = (run(roi_head(sampler=dict(type=t, **shared), **keys), (3, 0, 2)) for t in ('PrimeSampler', 'RandomSampler'))
        for a, b in zip(ours, theirs):
            for k in b: torch.testing.assert_close(a[k], b[k], rtol=0, atol=0)


@pytest.mark.parametrize('pair', TABLE_3)
@pytest.mark.parametrize('masks', [False, True])
def test_every_pair_of_table_3_trains(pair, masks):
    pos, neg, keys = TABLE_3[pair]
    losses, grads = run(roi_head(sampler=prime(pos, neg), masks=masks, **keys), (3, 0, 2))
    assert {'loss_cls', 'loss_bbox'} <= losses.keys() and all(torch.isfinite(v) and v > 0 for v in losses.values())
    for name, g in grads.items(): assert g is not None and torch.isfinite(g).all() and g.abs().sum() > 0, name


@pytest.mark.parametrize('keys', [{}, PISA], ids=['alone', 'pisa'])
def test_score_hlr_weights_move_the_gradient_and_keep_the_loss(keys):
    "The weights reach the loss: its value is that of the same samples without weights, its gradient is not"
    def losses(weighted):
        head = build(prime('R', 'score_hlr', 40), **keys)
        if not weighted:
            batch = head.bbox_sampler.sample_batch
            head.bbox_sampler.sample_batch = lambda *a: (batch(*a)[0], None)
        return run(head, (3, 2))
    (a, grad_a), (b, grad_b) = losses(True), losses(False)
    torch.testing.assert_close(a['loss_cls'], b['loss_cls'], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(grad_a['bbox_head.fc_cls.weight'], grad_b['bbox_head.fc_cls.weight'], rtol=1e-2)


@pytest.mark.parametrize('pos,neg', [('R', 'R'), *MINING])
def test_ignored_regions_are_never_taken(pos, neg):
    crowd = InstanceData(bboxes=torch.tensor([[0., 0, 64, 128]]))
    taken = {}
    for thr in (-1, 0.5):
        head = build(prime(pos, neg))
        head.bbox_assigner.ignore_iof_thr = thr
        results, _, assigned, _, _ = sample(head, (3, 2), crowd)
        taken[thr] = [set(ids(torch.cat([r.pos_inds, r.neg_inds]))) for r in results]
    for with_, without, a in zip(taken[0.5], taken[-1], assigned):
        ignored = set(ids((a.gt_inds < 0).nonzero()[:, 0]))
        assert not with_ & ignored and without & ignored  # where the region is not ignored, some of it is taken
        assert len(with_) == 16


@pytest.mark.parametrize('pos,neg', [('R', 'R'), *MINING])
@pytest.mark.parametrize('case', ['no ground truth', 'only positives', 'only ignored', 'no proposals', 'nothing at all',
                                  'fewer than the budget'])
def test_odd_candidates(pos, neg, case):
    objects = (0, 0) if case in ('no ground truth', 'nothing at all') else (3, 1)
    head = build(prime(pos, neg, num=500 if case == 'fewer than the budget' else 16))
    x, proposals, samples = scene(objects)
    ignored = [None] * 2
    if case == 'only positives': proposals = [InstanceData(bboxes=s.gt_instances.bboxes.repeat(8, 1)) for s in samples]
    if case == 'only ignored':
        head.bbox_assigner.ignore_iof_thr, head.bbox_sampler.add_gt = 0.5, False
        ignored = [InstanceData(bboxes=torch.tensor([[-500., -500, 600, 600]]))] * 2
    if 'no proposals' in case or 'nothing' in case: proposals = [InstanceData(bboxes=torch.zeros(0, 4)) for _ in samples]
    gts = [s.gt_instances for s in samples]
    results, weights = sample_rois(head.bbox_assigner, head.bbox_sampler, x, proposals, gts, ignored)
    for i, (r, g) in enumerate(zip(results, gts)):
        num_pos, num_neg = len(r.pos_inds), len(r.neg_inds)
        if case == 'no ground truth': assert (num_pos, num_neg) == (0, 16)
        elif case == 'only positives': assert num_neg == 0 and num_pos == (min(9 * len(g), 16) if pos == 'H' else 4)
        elif case in ('only ignored', 'nothing at all'): assert num_pos == num_neg == 0
        elif case == 'no proposals': assert (num_pos, num_neg) == (len(g), 0)
        else: assert num_pos + num_neg == len(g) + len(proposals[i])
        if weights: assert len(weights[i]) == num_neg and torch.isfinite(weights[i]).all()
    losses = head.bbox_loss(x, results, weights)['loss_bbox'] if case not in ('only ignored', 'nothing at all') else {}
    assert all(torch.isfinite(v).all() for v in losses.values())


def test_neg_pos_ub_bounds_the_negatives():
    for neg in ('R', 'H*', 'score_hlr'):
        for r in sample(build(prime('R', neg, num=40, neg_pos_ub=2)), (3, 0, 1))[0]:
            assert 0 < len(r.neg_inds) <= 2 * max(len(r.pos_inds), 1)


def test_the_extra_forward_leaves_no_trace():
    head = build(prime('H*', 'H*'))
    fcs = head.bbox_head.shared_fcs
    fcs[0] = torch.nn.Sequential(fcs[0], torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5))
    fcs[0][2].eval()  # a part that was in evaluation mode stays so
    before = {k: v.clone() for k, v in head.state_dict().items()}, [m.training for m in head.modules()]
    x, proposals, samples = scene((3, 2))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    sample_rois(head.bbox_assigner, head.bbox_sampler, x, proposals, [s.gt_instances for s in samples], [None] * 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[0][k]) for k, v in head.state_dict().items())
    assert [m.training for m in head.modules()] == before[1] and torch.is_grad_enabled() and torch.is_autocast_cache_enabled()


@pytest.mark.parametrize('products', [contextlib.nullcontext, RoundedProducts])
@pytest.mark.parametrize('pos,neg', MINING)
def test_gradients_reach_the_head_under_mixed_precision(pos, neg, products):
    "Weights that are cast without a gradient must not be used again in the forward that trains"
    with torch.autocast('cpu', dtype=torch.bfloat16), products():
        losses, grads = run(roi_head(sampler=prime(pos, neg), **PISA), (3, 0, 2))
    assert all(torch.isfinite(v) for v in losses.values())
    for name, g in grads.items(): assert g is not None and torch.isfinite(g).all() and g.abs().sum() > 0, name


@pytest.mark.parametrize('pos,neg', [p for p in MINING if p[1] != 'score_hlr'])
def test_in_mmdets_own_head(pos, neg):
    "One image at a time gives what all at once do, and the losses with them"
    ours, theirs = (run(roi_head(kind, sampler=prime(pos, neg)), (3, 0, 2)) for kind in ('PrimeRoIHead', 'StandardRoIHead'))
    for k, v in theirs[0].items(): torch.testing.assert_close(ours[0][k], v)


def test_score_hlr_in_mmdets_pisa_head():
    keys = dict(isr=dict(k=2., bias=0.))
    a, b = (run(build(s, 'PISARoIHead', classes=1, **keys), (2,), 1)[0] for s in
            (prime('R', 'score_hlr', 40), dict(type='ScoreHLRSampler', num=40, pos_fraction=0.25)))
    for k in b: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind,forwards', [('CascadeRoIHead', 2), ('PrimeCascadeRoIHead', 1)])
def test_in_a_cascade_each_stage_mines_with_its_own_head(kind, forwards, monkeypatch):
    "In mmdet's cascade image by image, in ours with one forward a stage"
    head, stages = cascade_head(kind, sampler=prime('H', 'H')), []
    forward = head._bbox_forward
    monkeypatch.setattr(head, '_bbox_forward', lambda stage, x, rois: stages.append((stage, torch.is_grad_enabled())) or forward(stage, x, rois))
    losses, _ = run(head, (3, 2))
    assert all(torch.isfinite(v) for v in losses.values())
    assert stages == [(0, False)] * forwards + [(0, True)] + [(1, False)] * forwards + [(1, True)]  # two images are mined, then both train
    assert [s.stage for s in head.bbox_sampler] == [0, 1]


@pytest.mark.parametrize('keys', [{}, PISA], ids=['alone', 'pisa'])
@pytest.mark.parametrize('pos,neg', [p for p in MINING if p[1] != 'score_hlr'])
def test_a_cascade_samples_at_once_what_mmdets_samples_image_by_image(pos, neg, keys, monkeypatch):
    "The same samples of every image in every stage, so without ISR and CARL the same losses and gradients, to the last bit"
    def trained(kind, **keys):
        head, stages = build(prime(pos, neg), kind, **keys), []
        real = head.bbox_loss
        monkeypatch.setattr(head, 'bbox_loss', lambda stage, x, results: stages.append(results) or real(stage, x, results))
        return run(head, (3, 0, 2)), stages
    (ours, at_once), (theirs, one_by_one) = trained('PrimeCascadeRoIHead', **keys), trained('CascadeRoIHead')
    assert len(at_once) == len(one_by_one) == 2 and all(len(results) == 3 for results in at_once)
    for r, s in zip(sum(at_once, []), sum(one_by_one, [])):
        assert torch.equal(r.pos_inds, s.pos_inds) and torch.equal(r.neg_inds, s.neg_inds) and torch.equal(r.priors, s.priors)
    if not keys: torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize('wrong,text', [
    (dict(pos='H', neg='R'), "so set pos='H' and neg='H'"), (dict(pos='R', neg='H'), "so set pos='H' and neg='H'"),
    (dict(pos='H', neg='H', neg_pos_ub=3), 'without neg_pos_ub'), (dict(pos='C', neg='R'), 'isr and carl in train_cfg.rcnn'),
    (dict(pos='h*'), "did you mean 'H*'?"), (dict(neg='ohem'), 'Choose from: R, H*, H, score_hlr'), (dict(pos='score_hlr'), 'is not known'),
    (dict(hlr=dict(power=1)), "neg='score_hlr'"), (dict(neg='score_hlr', hlr=dict(k=0.5)), 'power, bias, score_thr, iou_thr'),
    (dict(pos_fraction=1.5), 'from 0 to 1'), (dict(neg='score_hlr', hlr=dict(power=-1)), 'hlr.power must be at least 0, not -1'),
    (dict(neg='score_hlr', hlr=dict(power='2')), "hlr.power must be a number, not '2'"), (dict(neg='score_hlr', hlr=dict(bias=1)), 'hlr.bias must be in [0, 1), not 1'),
    (dict(neg='score_hlr', hlr=dict(score_thr=-.1)), 'hlr.score_thr must be from 0 to 1, not -0.1'),
    (dict(neg='score_hlr', hlr=dict(iou_thr=2)), 'hlr.iou_thr must be from 0 to 1, not 2')])
def test_refusals(wrong, text):
    refused(lambda: PrimeSampler(**{'num': 16, 'context': roi_head(), **wrong}), text)


def test_mining_needs_an_roi_head():
    refused(lambda: PrimeSampler(16, neg='H*'), 'mines with an RoI head')
    PrimeSampler(16)


def test_a_head_that_takes_no_weights_is_refused():
    "mmdet's StandardRoIHead would fail in training, on a pair where it wants a sampling result; a head that takes weights says so"
    refused(lambda: roi_head('StandardRoIHead', sampler=prime('R', 'score_hlr')), 'gives weights to negatives, and StandardRoIHead does not use them: use PrimeRoIHead')
    with pytest.raises(AttributeError): run(roi_head('StandardRoIHead', sampler=dict(type='ScoreHLRSampler', num=16, pos_fraction=0.25)))
    class Own(MODELS.get('StandardRoIHead')): takes_neg_weights = True
    for kind in ('PrimeRoIHead', 'PISARoIHead', Own): roi_head(kind, sampler=prime('R', 'score_hlr'))


def test_cascades_take_no_weights():
    refused(lambda: cascade_head(sampler=prime('R', 'score_hlr')), 'gives weights to negatives')
    head = cascade_head(sampler=prime())
    batch = head.bbox_sampler[0].sample_batch  # of another sampler, which is known to weigh only when it does
    head.bbox_sampler[0].sample_batch = lambda *a: (batch(*a)[0], [torch.ones(12)] * 2)
    refused(lambda: run(head, (3, 2)), 'PrimeSampler gives weights to negatives, and a cascade does not use them')
