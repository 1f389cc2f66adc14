"Importance-based Sample Reweighting: against slow references and mmdet's `isr_p`, its guards, and the defects that it must not have"
from types import SimpleNamespace
import pytest, torch
import torch.nn.functional as F
from torch import tensor
from torch._subclasses import FakeTensorMode
from pisa.hlr import iou_hlr
from pisa.isr import importance, importance_weight, isr_weights, preserve_loss
from refusal import refused


def reference(iou, gt, label, loss, gamma=2., beta=0., base=None, mask=None):
    "Section 3 and Eq. 1 to 3 with plain lists, in double precision"
    n = len(iou)
    iou, gt, label, loss = (x.tolist() for x in (iou, gt, label, loss))
    base = [1.]*n if base is None else base.tolist()
    used = [i for i in range(n) if mask is None or mask[i]]
    local = {i: sum(gt[j] == gt[i] and (-iou[j], j) < (-iou[i], i) for j in used) for i in used}
    out = list(base)
    for i in used:
        mine = [j for j in used if label[j] == label[i]]
        r = sum((local[j], -iou[j], j) < (local[i], -iou[i], i) for j in mine)
        out[i] = base[i] * ((1 - beta)*(len(mine) - r)/len(mine) + beta)**gamma
    before, after = sum(base[i]*loss[i] for i in used), sum(out[i]*loss[i] for i in used)
    for i in used: out[i] *= before/after if after else 1.
    return tensor(out, dtype=torch.float64)


def random_case(seed, n):
    gen = torch.Generator().manual_seed(seed)
    ints = lambda hi: torch.randint(0, hi, (n,), generator=gen)
    rand = lambda: torch.rand(n, generator=gen)
    gt = ints(9)
    iou = rand() if seed % 2 else (rand()*4).round()/4
    return dict(iou=iou, gt=gt, label=tensor([80, 3, 2**40])[gt % 3], loss=rand()*3), dict(base=ints(3).float(), mask=ints(3) > 0)


@pytest.mark.parametrize('n', [1, 2, 5, 40, 120])
def test_agrees_with_the_reference(n):
    for seed in range(4):
        case, extra = random_case(seed, n)
        for keys in (), ('base',), ('mask',), ('base', 'mask'):
            more = {k: extra[k] for k in keys}
            for gamma,beta in (2., 0.), (.5, 0.), (1., .3), (0., 0.):
                torch.testing.assert_close(isr_weights(**case, gamma=gamma, beta=beta, **more).double(),
                                           reference(**case, gamma=gamma, beta=beta, **more), rtol=1e-4, atol=1e-5)


def test_importance_by_hand():
    rank, label = tensor([0, 2, 1, 0, 3]), tensor([7, 7, 7, 1, 7])
    torch.testing.assert_close(importance(rank, label), tensor([1, .5, .75, 1, .25]))
    mask = tensor([True, False, True, True, False])
    torch.testing.assert_close(importance(tensor([0, -1, 1, 0, -1]), label, mask), tensor([1, 0, .5, 1, 0]))
    torch.testing.assert_close(importance(tensor([2, 0, 1]), None), tensor([1/3, 1, 2/3]))
    torch.testing.assert_close(importance(tensor([0, -1, 1]), None, tensor([True, False, True])), tensor([1, 0, .5]))


def test_importance_weight_by_hand():
    u = tensor([0., .25, 1.])
    torch.testing.assert_close(importance_weight(u), tensor([0, .0625, 1]))
    torch.testing.assert_close(importance_weight(u, .5, .2), tensor([.2, .4, 1]).sqrt())
    torch.testing.assert_close(importance_weight(u, 0.), torch.ones(3))


def test_the_mask_is_a_selection():
    case, extra = random_case(1, 100)
    m, base = extra['mask'], extra['base']
    w = isr_weights(**case, **extra)
    torch.testing.assert_close(w[m], isr_weights(**{k: v[m] for k,v in case.items()}, base=base[m]))
    assert torch.equal(w[~m], base[~m])
    case['loss'], case['iou'] = case['loss'].where(m, float('inf')), case['iou'].where(m, float('nan'))
    assert torch.equal(w, isr_weights(**case, **extra))


# ---- the summed loss stays what it was

def total(w, loss): return (w.double()*loss.double()).sum()

@pytest.mark.parametrize('n', [1, 3, 500])
@pytest.mark.parametrize('scale', [1e-6, 1., 1e6])
def test_loss_is_preserved(n, scale):
    for seed in range(3):
        case, extra = random_case(seed, n)
        case['loss'] = case['loss']*scale
        w, m, b = isr_weights(**case, **extra), extra['mask'], extra['base']
        torch.testing.assert_close(total(w[m], case['loss'][m]), total(b[m], case['loss'][m]), rtol=1e-5, atol=0)
        torch.testing.assert_close(total(isr_weights(**case), case['loss']), total(torch.ones(n), case['loss']), rtol=1e-5, atol=0)


def test_edges_are_finite():
    case, _ = random_case(1, 6)
    no, yes = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    base = tensor([0., 1, 2, 3, 4, 5])
    plain = importance_weight(importance(iou_hlr(case['iou'], case['gt'], case['label']), case['label']))
    assert torch.equal(isr_weights(**case, mask=no), torch.ones(6))
    assert torch.equal(isr_weights(**case, mask=no, base=base), base)
    for loss in torch.zeros(6), tensor([1., float('inf'), 1, 1, 1, 1]), tensor([float('nan'), 1, 1, 1, 1, 1]):
        for m in None, yes: torch.testing.assert_close(isr_weights(**{**case, 'loss': loss}, mask=m), plain)
    assert isr_weights(*(x[:0] for x in case.values())).shape == (0,)
    torch.testing.assert_close(isr_weights(*(x[:1] for x in case.values())), torch.ones(1))
    flat = isr_weights(**{**case, 'iou': torch.full((6,), .5)})
    assert flat.isfinite().all() and (flat > 0).all()
    assert torch.equal(isr_weights(**case, base=torch.zeros(6)), torch.zeros(6))


def test_gradients_are_the_usual_ones_times_the_weights():
    case, extra = random_case(3, 50)
    logit = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.arange(50) % 4
    loss = F.cross_entropy(logit, target, reduction='none')
    iou = case['iou'].requires_grad_()
    w = isr_weights(**{**case, 'iou': iou, 'loss': loss}, **{**extra, 'base': extra['base'].requires_grad_()})
    assert not w.requires_grad
    grad, = torch.autograd.grad((w*loss).sum(), logit)
    usual = logit.softmax(1).detach() - F.one_hot(target, 4)
    torch.testing.assert_close(grad, w[:, None]*usual)
    for edge in torch.zeros(50, dtype=torch.bool), torch.ones(50, dtype=torch.bool):
        loss = F.cross_entropy(logit, target, reduction='none')
        grad, = torch.autograd.grad((isr_weights(**{**case, 'loss': loss*1e6}, mask=edge)*loss).sum(), logit)
        assert grad.isfinite().all()


@pytest.mark.parametrize('dtype,out', [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_types(dtype, out):
    case, extra = random_case(1, 300)
    case['loss'] = case['loss'].to(dtype)
    case['iou'] = case['iou'].to(dtype)
    w = isr_weights(**case, mask=extra['mask'], base=extra['base'].to(dtype))
    assert w.dtype == out
    torch.testing.assert_close(w.double(), reference(**case, **extra), rtol=1e-4, atol=1e-5)
    assert importance_weight(torch.rand(3).to(dtype)).dtype == out
    big = torch.full((300,), 60_000.).to(dtype)  # their sum overflows in half precision
    w = isr_weights(**{**case, 'loss': big})
    torch.testing.assert_close(total(w, big), big.double().sum(), rtol=1e-5, atol=0)


# ---- against mmdet, and its defects, by their names in nbs/mmdet/released.ipynb

class Deltas:
    "A box coder for which a box is its deltas"
    def decode(self, rois, deltas): return deltas

def released(iou, image, gt, label, logit, base, images):
    "mmdet's `isr_p` on positives whose boxes have the given IoUs"
    isr_p = pytest.importorskip('mmdet.models.losses.pisa_loss').isr_p
    target = tensor([0., 0, 100, 100]).repeat(len(iou), 1)
    pred = target.clone()
    pred[:, 2] *= iou  # so the IoU is the ratio of the widths
    results = [SimpleNamespace(pos_assigned_gt_inds=gt[image == b]) for b in range(images)]
    loss = lambda s,l,reduction_override: F.cross_entropy(s, l, reduction='none')
    return isr_p(logit, pred, (label, base.clone(), target, torch.ones_like(target)), target, results, loss, Deltas(),
                 num_class=logit.shape[1] - 1)[1]

def batch(objects, samples, labels, seed=0):
    "`objects[b]` ground truths in image `b`, `samples` positives of each; `labels[g]` is the class of a ground truth of the batch"
    gen = torch.Generator().manual_seed(seed)
    image = torch.cat([torch.full((o*samples,), b) for b,o in enumerate(objects)])
    gt = torch.cat([torch.arange(o).repeat(samples) for o in objects])  # numbered from 0 in each image
    unique = gt + tensor([sum(objects[:b]) for b in range(len(objects))])[image]
    n = len(gt)
    iou = .5 + .49*torch.randperm(n, generator=gen)/n
    return dict(iou=iou, image=image, gt=gt, label=tensor(labels)[unique], unique=unique,
                logit=torch.randn(n, max(labels) + 2, generator=gen), base=torch.ones(n), images=len(objects))

def both(b):
    loss = F.cross_entropy(b['logit'], b['label'], reduction='none')
    ours = isr_weights(b['iou'], b['unique'], b['label'], loss, base=b['base'])
    return ours, released(**{k: v for k,v in b.items() if k != 'unique'})


@pytest.mark.parametrize('objects,labels', [([4], [0, 1, 1, 0]), ([2, 2], [0, 1, 1, 0]), ([3, 3], [2, 1, 0, 0, 1, 2])])
def test_agrees_with_mmdet_for_equal_classes_and_two_images(objects, labels):
    for seed in range(3):
        ours, theirs = both(batch(objects, 5, labels, seed))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_colliding_ids():
    b = batch([3, 1, 3], 4, [0]*7)
    ours, theirs = both(b)
    assert not torch.allclose(ours, theirs, rtol=1e-2)
    torch.testing.assert_close(ours.double(), reference(b['iou'], b['unique'], b['label'],
        F.cross_entropy(b['logit'], b['label'], reduction='none')), rtol=1e-4, atol=1e-5)


def test_largest_class():
    "40 positives of one class and 4 of another: by Eq. 1 both fall to 1/n_j, in the released code the rare class stays near 1"
    iou, gt = torch.linspace(.9, .5, 44), tensor([0]*40 + [1]*4)
    u = importance(iou_hlr(iou, gt, gt), gt)
    torch.testing.assert_close(u, torch.cat([torch.arange(40, 0, -1)/40, torch.arange(4, 0, -1)/4]))
    loss, base = torch.ones(44), torch.ones(44)
    w = isr_weights(iou, gt, gt, loss)
    torch.testing.assert_close(w[43]/w[40], tensor((1/4)**2))
    logit = torch.zeros(44, 3)  # the same loss for all
    theirs = released(iou, torch.zeros_like(gt), gt, gt, logit, base, 1)
    torch.testing.assert_close(theirs[43]/theirs[40], tensor((37/40)**2))


def test_unguarded_ratio():
    "An infinite logit: the released ratio is NaN, and so are all its weights"
    b = batch([2], 3, [0, 1])
    b['logit'][0] = tensor([-float('inf'), 0, 0])
    ours, theirs = both(b)
    assert theirs.isnan().all() and ours.isfinite().all()
    b['logit'] = torch.full((6, 3), -200.).scatter(1, b['label'][:, None], 200.)  # every loss is exactly 0
    ours, theirs = both(b)
    assert theirs.isnan().all() and ours.isfinite().all()


# ---- errors

def test_errors_name_the_parameter():
    x, i = torch.rand(3), torch.arange(3)
    for call, text in (
        (lambda: importance(i, i[:2]), 'label must be [3]'),
        (lambda: importance(i[None], i), 'rank must be [N]'),
        (lambda: importance(x, i), 'rank must hold integers'),
        (lambda: importance(i, i, i), 'mask must be a bool tensor'),
        (lambda: importance_weight(x, gamma=-.1), 'gamma must be at least 0'),
        (lambda: importance_weight(x, gamma=float('nan')), 'gamma must be at least 0'),
        (lambda: importance_weight(x, beta=1.), 'beta must be in [0, 1)'),
        (lambda: importance_weight(x, beta=-.1), 'beta must be in [0, 1)'),
        (lambda: preserve_loss(x, torch.rand(3, 4)), 'loss must be [3]'),
        (lambda: preserve_loss(x, x, base=x[:1]), 'base must be [3]'),
        (lambda: preserve_loss(x, x, mask=x), 'mask must be a bool tensor'),
        (lambda: preserve_loss(x[None], x), 'weight must be [N]'),
        (lambda: isr_weights(x, i, i, x[:2]), 'loss must be [3]'),
        (lambda: isr_weights(x, i[:2], i, x), 'gt must be [3]')):
        refused(call, text)


# ---- no look at the data

@pytest.mark.parametrize('n', [0, 1, 50])
@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_runs_on_fake_tensors(n, device):
    "Fake tensors have no values, so whatever would look at one raises"
    with FakeTensorMode():
        x, i = torch.rand(n, device=device), torch.zeros(n, dtype=torch.long, device=device)
        for m in None, x > .5:
            for base in None, x:
                for w in importance(i, i, m), importance(i, None, m), importance_weight(x), preserve_loss(x, x, base, m), \
                         isr_weights(x, i, i, x.half(), base=base, mask=m):
                    assert w.shape == (n,) and w.dtype == torch.float32 and w.device.type == device


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    case, extra = random_case(1, 64)
    compiled = torch.compile(isr_weights, fullgraph=True, backend='aot_eager')
    for keys in (), ('base', 'mask'):
        more = {k: extra[k] for k in keys}
        torch.testing.assert_close(compiled(**case, **more), isr_weights(**case, **more))
