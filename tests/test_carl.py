"Classification-Aware Regression Loss: against Eq. 4 written out, its gradients, mmdet's `carl_loss`, and the defects that it must not have"
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch import tensor
from torch._subclasses import FakeTensorMode
from pisa.carl import carl_loss, carl_weights
from refusal import refused

SETTINGS = [(1., .1), (1., 0.), (.5, 0.), (2., 0.), (1., .3)]  # k and b, as in Table 5


def reference(prob, loss, k, b, form, weight):
    "Eq. 4 with plain lists, in double precision: the weighted loss of each box, its coordinates summed"
    loss, every = loss.double().reshape(len(prob), -1).sum(1).tolist(), range(len(prob))
    a = [1.]*len(prob) if weight is None else weight.double().tolist()
    v = [((1 - b)*p + b)**k for p in prob.tolist()]
    c = [v[i]*sum(a)/sum(a[j]*v[j] for j in every) for i in every]
    r = sum(a[i]*loss[i] for i in every) / sum(a[i]*c[i]*loss[i] for i in every) if form == 'replace' else 1.
    return tensor([a[i]*c[i]*r*loss[i] for i in every], dtype=torch.float64)

def random_case(seed, n, coords=True):
    gen = torch.Generator().manual_seed(seed)
    prob, mask = torch.rand(n, generator=gen), torch.randint(0, 3, (n,), generator=gen) > 0
    mask[0] = True
    return prob, torch.rand((n, 4) if coords else (n,), generator=gen), mask

def rows(loss): return loss.double().reshape(len(loss), -1).sum(1)


@pytest.mark.parametrize('k,b', SETTINGS)
@pytest.mark.parametrize('form', ['replace', 'add'])
@pytest.mark.parametrize('coords', [True, False])
def test_agrees_with_the_reference(k, b, form, coords):
    for n in 1, 2, 30:
        prob, loss, mask = random_case(n, n, coords)
        for m in None, mask, mask*torch.linspace(.1, 2, n):
            out = carl_loss(prob, loss, k, b, form, weight=m)
            assert out.shape == loss.shape and out.dtype == torch.float32
            torch.testing.assert_close(rows(out), reference(prob, loss, k, b, form, m), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('k,b', SETTINGS)
def test_weights_have_mean_one(k, b):
    prob, _, mask = random_case(0, 50)
    torch.testing.assert_close(carl_weights(prob, k, b).mean(), tensor(1.))
    c = carl_weights(prob, k, b, mask)
    torch.testing.assert_close(c[mask].mean(), tensor(1.))
    torch.testing.assert_close(c[mask], carl_weights(prob[mask], k, b))
    assert (c[~mask] == 0).all()


@pytest.mark.parametrize('k,b', SETTINGS)
@pytest.mark.parametrize('scale', [1e-6, 1., 1e6])
def test_replace_preserves_the_summed_loss(k, b, scale):
    prob, loss, mask = random_case(1, 200)
    loss = loss*scale
    torch.testing.assert_close(carl_loss(prob, loss, k, b).sum(), loss.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(carl_loss(prob, loss, k, b, weight=mask).sum(), loss[mask].sum(), rtol=1e-5, atol=0)


# ---- gradients

@pytest.mark.parametrize('k,b', SETTINGS)
@pytest.mark.parametrize('coords', [True, False])
def test_gradient_of_add_by_finite_differences(k, b, coords):
    prob, loss, mask = random_case(2, 12, coords)
    prob, loss = (prob.double()*.9 + .05).requires_grad_(), loss.double().requires_grad_()
    for m in None, mask, mask*torch.linspace(.1, 2, 12): assert torch.autograd.gradcheck(partial(carl_loss, k=k, b=b, form='add', weight=m), (prob, loss))


def test_gradient_of_replace_holds_the_ratio_constant():
    prob, loss, mask = random_case(3, 20)
    prob, loss = prob.requires_grad_(), loss.requires_grad_()
    for m in None, mask:
        replaced, added = (carl_loss(prob, loss, form=form, weight=m).sum() for form in ('replace', 'add'))
        r = (replaced/added).detach()
        for x in prob, loss:
            torch.testing.assert_close(torch.autograd.grad(replaced, x, retain_graph=True)[0],
                                       r*torch.autograd.grad(added, x, retain_graph=True)[0])


@pytest.mark.parametrize('k,b', SETTINGS)
def test_gradient_of_the_appendix_changes_sign_at_the_mean(k, b):
    "(n/S) v'_j (L_j - Lbar): exact, where the appendix has (n/S) v'_j L_j"
    prob, loss, _ = random_case(4, 40, coords=False)
    p, loss = (prob.double() + .01).requires_grad_(), loss.double()
    grad, = torch.autograd.grad(carl_loss(p, loss, k, b, form='add').sum(), p)
    p = p.detach()
    v, dv = ((1 - b)*p + b)**k, (1 - b)*k*((1 - b)*p + b)**(k - 1)
    mean = (v*loss).sum()/v.sum()
    torch.testing.assert_close(grad, len(p)/v.sum()*dv*(loss - mean))
    assert torch.equal(grad > 0, loss > mean)
    assert not torch.allclose(grad, len(p)/v.sum()*dv*loss, rtol=.1)


def test_detach_is_model_b():
    prob, loss, mask = random_case(5, 20)
    prob, loss = prob.requires_grad_(), loss.requires_grad_()
    for form in 'replace', 'add':
        full, cut = (carl_loss(prob, loss, form=form, weight=mask, detach=d) for d in (False, True))
        assert torch.equal(full, cut)
        grads = [torch.autograd.grad(x.sum(), (prob, loss), allow_unused=True) for x in (full, cut)]
        assert grads[0][0].abs().sum() > 0 and grads[1][0] is None
        assert torch.equal(grads[0][1], grads[1][1])
    assert carl_loss(prob.detach(), loss).requires_grad


# ---- edges

def run(prob, loss, **kw):
    prob, loss = prob.clone().requires_grad_(), loss.clone().requires_grad_()
    out = carl_loss(prob, loss, **kw)
    out.sum().backward()
    return out.detach(), prob.grad, loss.grad

@pytest.mark.parametrize('form', ['replace', 'add'])
@pytest.mark.parametrize('k,b', SETTINGS + [(.1, 0.), (6., 0.)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edges_are_finite(form, k, b, dtype):
    one, some = torch.ones(5), tensor([True, False, True, False, True])
    cases = [(0*one, one), (one, one), (one/2, 0*one), (0*one, 0*one), (tensor([0., 1, 0, 1, .5]), one), (one/2, 1e4*one)]
    for prob,loss in cases:
        for mask in None, some, ~some, some & ~some:
            for wide in False, True:
                l = (loss[:, None].repeat(1, 4) if wide else loss).to(dtype)
                out, dp, dl = run(prob.to(dtype), l, form=form, k=k, b=b, weight=mask)
                assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                assert out.isfinite().all() and dp.isfinite().all() and dl.isfinite().all()
                if mask is not None: assert (out[~mask] == 0).all() and (dp[~mask] == 0).all() and (dl[~mask] == 0).all()
                if form == 'replace':
                    torch.testing.assert_close(out.sum(), (l if mask is None else l[mask]).to(out.dtype).sum(), rtol=1e-3, atol=1e-6)
    for shape in (0,), (0, 4): assert run(one[:0].to(dtype), torch.ones(shape, dtype=dtype), form=form, k=k, b=b)[0].shape == shape


@pytest.mark.parametrize('form', ['replace', 'add'])
@pytest.mark.parametrize('k', [1., 2.])
@pytest.mark.parametrize('junk', [float('nan'), float('inf')])
def test_what_is_masked_has_no_influence(form, k, junk):
    prob, loss, mask = random_case(6, 30)
    clean = run(prob, loss, form=form, k=k, weight=mask)
    dirty = run(prob.where(mask, junk), loss.where(mask[:, None], junk), form=form, k=k, weight=mask)
    for x,y in zip(clean, dirty): assert torch.equal(x, y)


def test_one_infinite_loss_leaves_the_others_finite():
    prob, loss, _ = random_case(7, 5, coords=False)
    loss[2] = float('inf')
    out = carl_loss(prob, loss)
    assert out[[0, 1, 3, 4]].isfinite().all()
    torch.testing.assert_close(out[:2], carl_loss(prob, loss, form='add')[:2])  # the ratio is 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    prob, loss, mask = random_case(8, 300)
    prob, loss = prob.to(dtype), loss.to(dtype)
    torch.testing.assert_close(carl_loss(prob, loss, weight=mask), carl_loss(prob.float(), loss.float(), weight=mask))
    many = torch.full((300,), 60_000.).to(dtype)  # their sum overflows in half precision
    torch.testing.assert_close(carl_loss(prob, many).sum(), many.float().sum(), rtol=1e-5, atol=0)


# ---- against mmdet, and its defects, by their names in nbs/mmdet/released.ipynb

def released(logit, label, reg_loss, k, b, sigmoid):
    "mmdet's `carl_loss`; the regression loss is handed in as it is, `avg_factor` is 1"
    theirs = pytest.importorskip('mmdet.models.losses.pisa_loss').carl_loss
    zero = torch.zeros(len(label), 4)
    return theirs(logit, label, zero, zero, lambda *_, reduction_override: reg_loss, k=k, bias=b, avg_factor=1,
                  sigmoid=sigmoid, num_class=3)['loss_carl']

@pytest.mark.parametrize('k,b', [(1., .2), (1., 0.), (2., .1), (.5, .1)])
@pytest.mark.parametrize('sigmoid', [False, True])
def test_add_agrees_with_mmdet_on_coordinates(k, b, sigmoid):
    gen = torch.Generator().manual_seed(0)
    label = torch.arange(30) % 3
    pred, target = torch.randn(2, 30, 4, generator=gen)
    reg_loss = F.smooth_l1_loss(pred, target, reduction='none')
    logit = torch.randn(30, 3 if sigmoid else 4, generator=gen).requires_grad_()
    prob = (logit.sigmoid() if sigmoid else logit.softmax(1)).gather(1, label[:, None])[:, 0]
    ours, theirs = carl_loss(prob, reg_loss, k, b, form='add').sum(), released(logit, label, reg_loss, k, b, sigmoid).sum()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x, logit)[0] for x in (ours, theirs)))


def test_n_times_n():
    "[N] times [N, 1] is [N, N]: the released sum is N times too large"
    n = 30
    prob, loss, _ = random_case(9, n, coords=False)
    label, logit = torch.zeros(n, dtype=torch.long), torch.zeros(n, 4)
    logit[:, 0] = prob
    theirs = released(logit, label, loss, 1., .2, False)
    torch.testing.assert_close(theirs[0], n*loss.sum())
    ours = carl_loss(logit.softmax(1)[:, 0], loss, 1., .2, form='add')
    assert ours.shape == (n,)
    torch.testing.assert_close(ours.sum().double(), reference(logit.softmax(1)[:, 0], loss, 1., .2, 'add', None).sum())


def test_unguarded_ratio():
    "Without a positive the released loss is `cls_score.sum() * 0`, NaN if a logit is infinite"
    logit = torch.zeros(4, 4)
    logit[0, 0] = float('inf')
    label = torch.full((4,), 3)  # background
    assert released(logit, label, torch.zeros(4, 4), 1., .2, True).isnan().all()
    prob = logit.softmax(1)[:, 0].requires_grad_()  # NaN in the first place
    out = carl_loss(prob, torch.ones(4, 4), form='add', weight=label < 3)
    out.sum().backward()
    assert torch.equal(out.detach(), torch.zeros(4, 4)) and torch.equal(prob.grad, torch.zeros(4))


# ---- errors

@pytest.mark.parametrize('shape', [(), (1,), (3, 1), (1, 4), (3, 3), (4, 3), (3, 4, 1), (3, 5), (0,)])
def test_other_shapes_are_refused(shape):
    refused(lambda: carl_loss(torch.rand(3), torch.ones(shape)), 'reg_loss must be [3] or [3, 4] like prob, not')

def test_errors_name_the_parameter():
    x = torch.rand(3)
    for call, text in (
        (lambda: carl_loss(x[:, None], x), 'prob must be [N]'),
        (lambda: carl_loss(x[0], x), 'prob must be [N]'),
        (lambda: carl_loss(x, x, k=0), 'k must be above 0'),
        (lambda: carl_loss(x, x, k=-1.), 'k must be above 0'),
        (lambda: carl_loss(x, x, b=1.), 'b must be in [0, 1)'),
        (lambda: carl_loss(x, x, b=-.1), 'b must be in [0, 1)'),
        (lambda: carl_loss(x, x, form='sum'), "form must be 'replace' or 'add'"),
        (lambda: carl_loss(x, x, weight=x[:1] > 0), 'weight must be [3] like prob, not [1]')):
        refused(call, text)


# ---- no look at the data

@pytest.mark.parametrize('n', [0, 1, 50])
@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_runs_on_fake_tensors(n, device):
    "Fake tensors have no values, so whatever would look at one raises"
    with FakeTensorMode():
        p = torch.rand(n, device=device, requires_grad=True)
        for m in None, p > .5:
            assert carl_weights(p, weight=m).shape == (n,)
            for loss in torch.rand(n, device=device), torch.rand(n, 4, device=device).half():
                for form in 'replace', 'add':
                    out = carl_loss(p, loss, form=form, weight=m)
                    if device == 'cpu': out.sum().backward()  # autograd wants a real device
                    assert out.shape == loss.shape and out.dtype == torch.float32 and out.device.type == device


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    prob, loss, mask = random_case(10, 40)
    compiled = torch.compile(carl_loss, fullgraph=True, backend='aot_eager')
    for m in None, mask:
        for form in 'replace', 'add':
            p, q = prob.clone().requires_grad_(), prob.clone().requires_grad_()
            a, b = compiled(p, loss, form=form, weight=m), carl_loss(q, loss, form=form, weight=m)
            torch.testing.assert_close(a, b)
            a.sum().backward(), b.sum().backward()
            torch.testing.assert_close(p.grad, q.grad)
