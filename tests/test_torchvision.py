"ISR and CARL in torchvision's detectors: against loops over images, mmdet's head, finite differences, and the plain detectors"
import copy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('torchvision')
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.ssd import SSD
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss
from pisa.isr import isr_weights
from pisa.prime import CARL, ISR, pair_iou, settings as parse
from pisa.torchvision import ROI, decoded, positive_rois, prime, prime_losses
from notebooks import log, papermill, pictures
from refusal import refused

ADD = dict(form='add', b=.2)
SETTINGS = {'isr': (dict(), None), 'carl': (None, dict()), 'v1': (dict(), dict()), 'v2': (dict(), ADD), 'odd': (dict(gamma=.5, beta=.2), dict(k=2., b=.3))}


class Backbone(nn.Module):
    "Features at stride 8, so that a whole detector takes milliseconds"
    out_channels = 32
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 8, 8)
    def forward(self, x): return self.conv(x)


def anchors(scales=1): return AnchorGenerator((tuple(16*2**i for i in range(scales)),), ((1.,),))


def detector(kind, classes=4):
    "A tiny detector in training, its weights the same at every call"
    torch.manual_seed(0)
    size = dict(min_size=64, max_size=64)
    if kind == 'faster': model = FasterRCNN(Backbone(), classes, rpn_anchor_generator=anchors(), box_batch_size_per_image=32, **size)
    if kind == 'retina': model = RetinaNet(Backbone(), classes, anchor_generator=anchors(2), **size)
    if kind == 'giou':
        model = RetinaNet(Backbone(), classes, anchor_generator=anchors(2), **size)
        model.head.regression_head._loss_type = 'giou'
    if kind == 'fcos': model = FCOS(Backbone(), classes, anchor_generator=AnchorGenerator(((8,),), ((1.,),)), **size)
    if kind == 'ssd':
        backbone = Backbone()
        backbone.out_channels = [32]
        model = SSD(backbone, DefaultBoxGenerator([[1]], scales=[.2, .5]), (64, 64), classes)
        assert type(model) is SSD
    for m in model.modules():
        if isinstance(m, nn.GroupNorm): m.eval()
    return model.train()


KINDS = ['faster', 'retina', 'giou', 'fcos', 'ssd']


def scene(objects=(3, 2), order=None, classes=4, seed=0):
    "Images and ground truths; classes from 1"
    g, out = torch.Generator().manual_seed(seed), []
    for n in objects:
        corner = torch.rand(n, 2, generator=g)*30
        boxes = torch.cat([corner, corner + 12 + torch.rand(n, 2, generator=g)*20], 1)
        out.append((torch.rand(3, 64, 64, generator=g), dict(boxes=boxes, labels=torch.randint(1, classes, (n,), generator=g))))
    out = [out[i] for i in order or range(len(out))]
    return [x for x, _ in out], [t for _, t in out]


def run(model, images, targets, seed=0):
    "Losses, and the gradient of each weight"
    torch.manual_seed(seed)
    losses = model(images, [dict(t) for t in targets])
    model.zero_grad()
    sum(losses.values()).backward()
    return {k: v.detach() for k, v in losses.items()}, [p.grad.clone() if p.grad is not None else None for p in model.parameters()]


def same(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        if x is not None: torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('objects', [(3, 2), (4, 0, 1), (0, 0)])
def test_off_is_the_plain_detector_and_on_keeps_its_values(kind, objects):
    "With both off everything is the same to the last bit; with v1 the values of the losses are, and the gradient is not"
    plain, model = detector(kind), detector(kind)
    losses, gradient = run(plain, *scene(objects))
    off, g = run(prime(prime(model), isr=None, carl=None), *scene(objects))
    assert off == losses and all(a is None or torch.equal(a, b) for a, b in zip(gradient, g))
    on, h = run(prime(model), *scene(objects))
    for k in losses: torch.testing.assert_close(on[k], losses[k], rtol=1e-4, atol=1e-6)
    assert all(torch.isfinite(x).all() for x in h if x is not None)
    moved = max((a - b).abs().max() for a, b in zip(gradient, h) if a is not None)
    assert (moved > 1e-6) == (sum(objects) > 0)


# ---- against loops over images

def outputs_of(kind, objects, seed=0, A=40):
    "Made-up outputs of a head, with gradient, and what the anchors are matched with"
    g = torch.Generator().manual_seed(seed)
    _, targets = scene(objects)
    index, priors = [], []
    for t in targets:
        at = torch.full((A,), -1)
        if kind != 'ssd' and kind != 'fcos': at[-4:] = -2  # ignored
        for k in range(len(t['boxes'])): at[4*k:4*k + 4] = k
        index.append(at)
        prior = torch.rand(A, 4, generator=g)*20
        prior = torch.cat([prior[:, :2], prior[:, :2] + 10 + prior[:, 2:]], 1)
        pos = at >= 0
        prior[pos] = t['boxes'][at[pos]] + torch.randn(int(pos.sum()), 4, generator=g)
        priors.append(prior)
    rand = lambda d: (torch.randn(len(objects), A, d, generator=g)*.3).requires_grad_()
    return dict(cls_logits=rand(4), bbox_regression=rand(4), bbox_ctrness=rand(1)), priors, index, targets


def reference(model, kind, outputs, priors, index, targets, isr, carl):
    "Classification and box loss of all images, written with loops"
    B, rows, ids = len(targets), [], 0
    coder = model.head.regression_head.box_coder if kind in ('retina', 'giou') else model.box_coder
    for b, t in enumerate(targets):
        n = int((index[b] >= 0).sum())
        for a in range(len(index[b])):
            if index[b][a] < 0: continue
            k, logit, delta = int(index[b][a]), outputs['cls_logits'][b, a], outputs['bbox_regression'][b, a]
            label, box = t['labels'][k], t['boxes'][k]
            prior = priors[b][a]
            if kind == 'ssd': loss, prob = F.cross_entropy(logit[None], label[None]), logit.softmax(0)[label]
            else: loss, prob = sigmoid_focal_loss(logit, F.one_hot(label, 4).float(), reduction='sum'), logit[label].sigmoid()
            pred = decoded(coder, delta[None], prior[None])
            if kind in ('giou', 'fcos'): reg = generalized_box_iou_loss(pred[0], box)
            else:
                aim = coder.encode_single(box[None], prior[None])[0]
                reg = F.l1_loss(delta, aim, reduction='sum') if kind == 'retina' else F.smooth_l1_loss(delta, aim, reduction='sum')
            rows.append((loss, prob, reg, pair_iou(pred.detach(), box[None])[0], ids + k, label, n))
        ids += len(t['boxes'])
    total = max(1, len(rows))
    base = torch.tensor([1/(n*B) if kind in ('retina', 'giou') else 1/total for *_, n in rows])
    if not rows: return torch.zeros(()), torch.zeros(())
    loss, prob, reg, iou = (torch.stack([r[i] for r in rows]) for i in range(4))
    gt, label = (torch.tensor([int(r[i]) for r in rows]) for i in (4, 5))
    w = isr_weights(iou, gt, label, loss.detach(), base=base, **isr) if isr is not None else base
    if carl is None: return (w*loss).sum(), (base*reg).sum()
    k, b, form = carl.get('k', 1.), carl.get('b', .1), carl.get('form', 'replace')
    v = ((1 - b)*prob + b)**k
    c = v*base.sum()/(base*v).sum()
    awareness = (c*base*reg).sum()
    if form == 'replace': awareness = awareness*((base*reg).sum().detach()/awareness.detach())
    return (w*loss).sum(), awareness


@pytest.mark.parametrize('kind', ['retina', 'giou', 'fcos', 'ssd'])
@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('objects', [(3, 2), (2, 0, 4)])
def test_dense_detectors_against_loops(kind, settings, objects):
    isr, carl = SETTINGS[settings]
    model, given = detector(kind), outputs_of(kind, objects)
    owner = model if kind == 'ssd' else model.head
    leaves = given[0]['cls_logits'], given[0]['bbox_regression']
    plain = owner.compute_loss(given[3], given[0], given[1], given[2])
    before = torch.autograd.grad(plain['classification'] + plain['bbox_regression'], leaves)
    prime(model, isr, carl)
    losses = owner.compute_loss(given[3], given[0], given[1], given[2])
    ours = torch.autograd.grad(sum(v for k, v in losses.items() if k != 'bbox_ctrness'), leaves)
    with_, without = (reference(model, kind, *given, *choice) for choice in ((isr, carl), (None, None)))
    added = with_[1] + (without[1] if carl and carl.get('form') == 'add' else 0)
    change = [a - b for a, b in zip(torch.autograd.grad(with_[0] + added, leaves, retain_graph=True), torch.autograd.grad(sum(without), leaves))]
    same(ours, [a + b for a, b in zip(before, change)], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses['classification'], plain['classification'], rtol=1e-4, atol=1e-6)
    box = losses.get('loss_carl', losses['bbox_regression'])
    torch.testing.assert_close(box, with_[1], rtol=1e-4, atol=1e-6)


# ---- R-CNN against mmdet's head

@pytest.mark.parametrize('settings', SETTINGS)
def test_roi_losses_are_those_of_the_head_for_mmdet(settings):
    "The same logits, deltas, RoIs and matches: the same losses and gradients"
    pytest.importorskip('mmdet')
    from mmengine.config import ConfigDict
    from mmdet.models.task_modules.samplers import SamplingResult
    from pisa.mmdet.two_stage import prime_loss_and_target
    from small import roi_head
    isr, carl = SETTINGS[settings]
    head = roi_head(box_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1/9))).bbox_head
    model, g = detector('faster'), torch.Generator().manual_seed(0)
    _, targets = scene((3, 2))
    results, proposals, index, labels = [], [], [], []
    for t in targets:
        n, k = 12, len(t['boxes'])
        at = torch.arange(n) % k
        prior = t['boxes'][at] + torch.randn(n, 4, generator=g)*2
        other = torch.tensor([[0., 0, 9, 9]]).repeat(8, 1) + torch.arange(8.)[:, None]
        proposals.append(torch.cat([prior, other]))
        index.append(torch.cat([at, at.new_zeros(8)]))
        labels.append(torch.cat([t['labels'][at], at.new_zeros(8)]))
        assigned = torch.cat([at + 1, at.new_zeros(8)])
        results.append(SamplingResult(torch.arange(n), torch.arange(n, n + 8), proposals[-1], t['boxes'], SimpleAssign(assigned, t['labels'] - 1),
                                      assigned.new_zeros(n + 8, dtype=torch.uint8)))
    N = sum(map(len, labels))
    logit, delta = (torch.randn(N, d, generator=g)*.2 for d in (4, 16))
    logit, delta = logit.requires_grad_(), delta.requires_grad_()
    pos = positive_rois(model.roi_heads.box_coder, logit, delta, proposals, index, labels, targets)
    aim = model.roi_heads.box_coder.encode([t['boxes'][i] for t, i in zip(targets, index)], proposals)
    plain = dict(zip(ROI, fastrcnn_loss(logit, delta, labels, aim)))
    ours = prime_losses(dict(plain), ROI, pos, parse(ISR, isr), parse(CARL, carl))
    rois = torch.cat([torch.cat([torch.full((len(p), 1), float(i)), p], 1) for i, p in enumerate(proposals)])
    keys = {k: v for k, v in (('isr', isr), ('carl', carl)) if v is not None}
    theirs = prime_loss_and_target(head, ConfigDict(pos_weight=-1, **keys), logit[:, [1, 2, 3, 0]], delta[:, 4:], rois, results)['loss_bbox']
    for a, b in (('loss_classifier', 'loss_cls'), ('loss_box_reg', 'loss_bbox'), ('loss_carl', 'loss_carl')):
        if b in theirs:
            torch.testing.assert_close(ours[a], theirs[b].reshape(()), rtol=1e-4, atol=1e-6)
    same(torch.autograd.grad(sum(ours.values()), (logit, delta), retain_graph=True),
         torch.autograd.grad(sum(theirs[k] for k in ('loss_cls', 'loss_bbox', 'loss_carl') if k in theirs), (logit, delta)), rtol=1e-3, atol=1e-5)


class SimpleAssign:
    "What mmdet's `SamplingResult` asks of an assignment"
    def __init__(self, gt_inds, labels):
        self.gt_inds, self.labels = gt_inds, torch.where(gt_inds > 0, labels[(gt_inds - 1).clamp(min=0)], -1)


# ---- what must hold

@pytest.mark.parametrize('kind', ['retina', 'fcos', 'ssd'])
def test_the_order_of_the_images_does_not_matter(kind):
    model = prime(detector(kind), isr=dict(), carl=ADD)
    one, other = (run(model, *scene((3, 1, 2), order)) for order in ([0, 1, 2], [2, 0, 1]))
    for k in one[0]: torch.testing.assert_close(one[0][k], other[0][k], rtol=1e-4, atol=1e-6)
    same(one[1], other[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('objects, classes', [((1,), 4), ((1, 0), 2), ((2, 3), 2)])
def test_few_objects_and_one_class(kind, objects, classes):
    model = prime(detector(kind, classes), carl=ADD)
    losses, gradient = run(model, *scene(objects, classes=classes))
    assert all(torch.isfinite(x).all() for x in (*losses.values(), *(g for g in gradient if g is not None)))


@pytest.mark.parametrize('kind', KINDS)
def test_settings_change_at_every_call(kind):
    model = detector(kind)
    plain = run(model, *scene())
    both = run(prime(model), *scene())
    steep = run(prime(model, isr=dict(gamma=4.)), *scene())
    again = run(prime(model), *scene())
    assert set(run(prime(model, carl=ADD), *scene())[0]) == {*plain[0], 'loss_carl'}
    distance = lambda a, b: max((x - y).abs().max().item() for x, y in zip(a[1], b[1]) if x is not None)
    assert distance(both, again) == 0 < distance(both, steep) and distance(both, plain) > 0


@pytest.mark.parametrize('kind', KINDS)
def test_copied_and_saved(kind, tmp_path):
    "A copy and a file train as the model does, each with its own weights; the state dict and what is found are the plain model's"
    plain, model = detector(kind), prime(detector(kind))
    assert list(model.state_dict()) == list(plain.state_dict())
    clone = copy.deepcopy(model)
    torch.save(model, tmp_path/'model.pth')
    read = torch.load(tmp_path/'model.pth', weights_only=False)
    want = run(model, *scene())
    for p in model.parameters(): p.data.zero_()
    for other in clone, read:
        got = run(other, *scene())
        assert got[0] == want[0]
        same(got[1], want[1])
    plain.eval(), clone.eval()
    with torch.no_grad(): a, b = (m(scene()[0]) for m in (plain, clone))
    assert all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in x)


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16(kind):
    "Under autocast the losses are close to those without"
    model = prime(detector(kind), carl=ADD)
    want, _ = run(model, *scene())
    with torch.autocast('cpu', torch.bfloat16):
        try: detector(kind)(*scene())
        except RuntimeError as e: pytest.skip(f'this torchvision cannot train it in bfloat16: {e}')
        torch.manual_seed(0)
        losses = model(*scene())
    sum(losses.values()).backward()
    for k in want: torch.testing.assert_close(losses[k].float(), want[k], rtol=.1, atol=.05)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('coder', [FasterRCNN, RetinaNet], ids=['rois', 'anchors'])
def test_boxes_of_half_precision(coder, dtype):
    "Large boxes: the rounded regression and samples, decoded and compared in float64 by hand. An area of 500 x 500 is beyond float16"
    model = detector('faster' if coder is FasterRCNN else 'retina')
    coder = model.roi_heads.box_coder if coder is FasterRCNN else model.head.regression_head.box_coder
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=g)*200
    gt = torch.cat([corner, corner + 300 + torch.rand(40, 2, generator=g)*200], 1)
    prior, delta = (gt + 40*torch.randn(40, 4, generator=g)).to(dtype), torch.randn(40, 4, generator=g).mul(.3).to(dtype)
    p, d = prior.double(), delta.double()/torch.tensor(coder.weights)
    size = p[:, 2:] - p[:, :2]
    center, half = p[:, :2] + size/2 + d[:, :2]*size, d[:, 2:].exp()*size/2
    want = torch.cat([center - half, center + half], 1)
    box = decoded(coder, delta, prior)
    torch.testing.assert_close(box.double(), want, rtol=1e-5, atol=1e-3)
    inter = (torch.minimum(want[:, 2:], gt[:, 2:]) - torch.maximum(want[:, :2], gt[:, :2])).clamp(min=0).prod(1)
    union = (want[:, 2:] - want[:, :2]).prod(1) + (gt[:, 2:] - gt[:, :2]).prod(1) - inter
    torch.testing.assert_close(pair_iou(box, gt).double(), inter/union, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('share', [.01, .1, .2, .5])
def test_ssd_with_other_shares_of_negatives(share):
    model = detector('ssd')
    model.neg_to_pos_ratio = (1 - share)/share
    run(prime(model), *scene())


def test_roi_heads_with_a_forward_of_their_own():
    "One that adds to the results trains as the plain one does; one with other losses is refused at its first step"
    class Louder(RoIHeads):
        scale = 1.
        def forward(self, *args):
            result, losses = super().forward(*args)
            return result, {k: v*self.scale for k, v in losses.items()}
    want, model = run(prime(detector('faster')), *scene()), detector('faster')
    model.roi_heads.__class__ = Louder
    got = run(prime(model), *scene())
    assert got[0] == want[0]
    Louder.scale = 10.
    with pytest.raises(ValueError, match='the losses of Louder .* are not those that ISR and CARL change here'): run(model, *scene())


def test_a_replaced_method_is_refused():
    model = detector('retina')
    model.head.compute_loss = lambda *args: {}
    with pytest.raises(ValueError, match='compute_loss was replaced by .*: call prime before that'): prime(model)


def test_a_head_of_ones_own():
    "Its `forward` runs; other losses are refused"
    class Own(type(detector('retina').head)):
        calls = 0
        def forward(self, x):
            Own.calls += 1
            return super().forward(x)
    model = detector('retina')
    model.head.__class__ = Own
    run(prime(model), *scene())
    assert Own.calls == 1
    class Other(Own):
        def compute_loss(self, *args): return {k: 2*v for k, v in super().compute_loss(*args).items()}
    model.head.__class__ = Other
    refused(lambda: prime(model), 'the losses of RetinaNet')
    refused(lambda: prime(nn.Linear(2, 2)), 'Linear has no detector of torchvision in it')
    refused(lambda: prime(detector('fcos'), isr=dict(k=2)), 'gamma and beta here')


def test_carl_by_finite_differences():
    "The gradient of the form `add` into the scores; in float64"
    given = outputs_of('fcos', (2, 1))
    model = prime(detector('fcos').double(), isr=None, carl=ADD)
    outputs, priors, index, targets = given
    outputs = {k: v.detach().double() for k, v in outputs.items()}
    priors, targets = [p.double() for p in priors], [t | {'boxes': t['boxes'].double()} for t in targets]
    def loss(logit): return model.head.compute_loss(targets, outputs | {'cls_logits': logit}, priors, index)['loss_carl']
    logit = outputs['cls_logits'].clone().requires_grad_()
    gradient, = torch.autograd.grad(loss(logit), logit)
    for at in [(0, 0, int(targets[0]['labels'][0])), (1, 1, int(targets[1]['labels'][0]))]:
        step = torch.zeros_like(logit)
        step[at] = 1e-5
        assert gradient[at].item() == pytest.approx(((loss(logit + step) - loss(logit - step))/2e-5).item(), rel=1e-4)


def test_the_backbone_may_be_checkpointed():
    "Its forward runs twice then; the losses and gradients are the same"
    from torch.utils.checkpoint import checkpoint
    want = run(prime(detector('retina')), *scene())
    model = prime(detector('retina'))
    forward = model.backbone.forward
    model.backbone.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    got = run(model, *scene())
    for k in want[0]: torch.testing.assert_close(got[0][k], want[0][k])
    same(got[1], want[1])


@pytest.mark.parametrize('kind', KINDS)
def test_in_distributed_data_parallel(kind, tmp_path):
    import torch.distributed as dist
    want = run(prime(detector(kind)), *scene())
    dist.init_process_group('gloo', rank=0, world_size=1, store=dist.FileStore(str(tmp_path/'meet'), 1))
    try: got = run(nn.parallel.DistributedDataParallel(prime(detector(kind))), *scene())
    finally: dist.destroy_process_group()
    assert got[0] == want[0]
    same(got[1], want[1])


@pytest.mark.parametrize('form', ['replace', 'add'])
@pytest.mark.parametrize('objects', [(3, 2), (2, 0), (0,)])
@pytest.mark.parametrize('kind', [MaskRCNN, KeypointRCNN])
def test_masks_and_keypoints_keep_their_own_losses(kind, objects, form):
    "Those of masks, keypoints and the RPN are the plain ones to the last bit; without an object the box losses are 0"
    images, targets = scene(objects)
    for t in targets:
        n = len(t['boxes'])
        t['masks'] = torch.ones(n, 64, 64, dtype=torch.uint8)
        t['keypoints'] = torch.cat([t['boxes'].view(n, 2, 2).repeat(1, 9, 1)[:, :17], torch.ones(n, 17, 1)], 2)
    torch.manual_seed(0)
    plain = kind(Backbone(), 4, rpn_anchor_generator=anchors(), box_batch_size_per_image=32, min_size=64, max_size=64).train()
    want, _ = run(plain, images, targets)
    got, gradient = run(prime(plain, carl=dict(form=form)), images, targets)
    assert {*got} == {*want} | ({'loss_carl'} if form == 'add' else set())
    for k in {*want} - {*ROI}: assert torch.equal(got[k], want[k]), k
    if not sum(objects): assert got['loss_box_reg'] == 0 == got.get('loss_carl', 0)
    assert all(torch.isfinite(x).all() for x in (*got.values(), *(g for g in gradient if g is not None)))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('bad', [None, 0., torch.rand(4), torch.tensor([[1., 3, 1, 4], [2, 4, 3, 4]])], ids=['none', 'number', 'one', 'empty box'])
def test_wrong_targets_are_refused_as_before(kind, bad):
    targets = bad if bad is None else [dict(boxes=bad, labels=torch.ones(2).long())]
    said = []
    for model in detector(kind), prime(detector(kind)):
        with pytest.raises(Exception) as error: model(scene((2,))[0], targets)
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_the_notebook_trains_two_detectors_and_shows_them(tmp_path):
    pytest.importorskip('pycocotools')
    log(papermill('14_torchvision', tmp_path/'out.ipynb', images=16, epochs=1))
    assert pictures(tmp_path/'out.ipynb') == 4  # data, loss, detections of both
