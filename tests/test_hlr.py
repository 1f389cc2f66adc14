"The hierarchical local rank: against a slow reference, its properties, its edges, and the defects that it must not have"
from itertools import groupby
import pytest, torch
from torch._subclasses import FakeTensorMode
from pisa.hlr import hierarchical_local_rank, iou_hlr, score_hlr
from refusal import refused


def reference(score, group, cls=None, mask=None):
    "The definition with plain lists: local rank within the group, then order by (local rank, score) within the class"
    n = len(score)
    score, group = score.tolist(), group.tolist()
    mask = None if mask is None else mask.tolist()
    cls = [0]*n if cls is None else cls.tolist()
    used = [i for i in range(n) if mask is None or mask[i]]
    down = lambda i: (score[i] != score[i], -score[i] if score[i] == score[i] else 0)  # NaN after all else
    members = lambda ids: {k: [i for _,i in pairs] for k,pairs in groupby(sorted((ids[i], i) for i in used), lambda p: p[0])}
    local, rank = {}, [-1]*n
    for mine in members(group).values():
        for r,i in enumerate(sorted(mine, key=lambda i: (down(i), i))): local[i] = r
    for mine in members(cls).values():
        for r,i in enumerate(sorted(mine, key=lambda i: (local[i], down(i), i))): rank[i] = r
    return rank


def random_case(seed, n, levels=None):
    "Scores (rounded to `levels` values for ties), groups, classes and a mask; ids are small and large"
    gen = torch.Generator().manual_seed(seed)
    ints = lambda hi: torch.randint(0, hi, (n,), generator=gen)
    score = torch.rand(n, generator=gen) - (.5 if seed % 3 == 0 else 0)
    if levels: score = (score*levels).round()/levels
    group = torch.tensor([7, 2**62, 0, 5, 2**63 - 1, 11, 3, 2**31, 8, 1, 4, 99, 6])[ints(13)]
    return score, group, torch.tensor([2**40, 80, 2**40 + 1, 0])[ints(4)], ints(3) > 0


@pytest.mark.parametrize('n', [0, 1, 2, 3, 7, 30, 200])
@pytest.mark.parametrize('levels', [None, 4, 1])
def test_agrees_with_the_reference(n, levels):
    for seed in range(6):
        score, group, cls, mask = random_case(seed, n, levels)
        for g, c in (group, cls), (group, None), (group % 97, cls % 7), (group % 97, None):
            for m in mask, None, torch.zeros_like(mask), torch.ones_like(mask):
                rank = hierarchical_local_rank(score, g, c, m)
                assert rank.dtype == torch.long and rank.shape == score.shape
                assert rank.tolist() == reference(score, g, c, m)


@pytest.mark.parametrize('n', [300, 40_000])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
def test_long_inputs_agree_with_the_reference(n, dtype):
    "Scores of all kinds: negative scores, both zeros, infinities and NaN included"
    torch.manual_seed(n)
    score = torch.randn(n, dtype=torch.float64).to(dtype)
    odd = torch.tensor([0., -0., float('inf'), -float('inf'), float('nan'), -float('nan'), 1e-7, -1e-7]).to(dtype)
    score[torch.randperm(n)[:n//10//8*8]] = odd.repeat(n//10//8)
    group, cls, mask = torch.randint(0, 1000, (n,)), torch.randint(0, 9, (n,)), torch.rand(n) < .7
    for m in None, mask: assert hierarchical_local_rank(score, group, cls, m).tolist() == reference(score, group, cls, m)


def test_permuting_the_samples_permutes_the_ranks():
    score, group, cls, mask = random_case(1, 200)
    assert len(score.unique()) == 200
    perm = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hierarchical_local_rank(score, group, cls, mask)[perm],
                       hierarchical_local_rank(score[perm], group[perm], cls[perm], mask[perm]))


def test_ranks_of_a_class_are_a_permutation():
    score, group, cls, mask = random_case(2, 200, 3)
    rank = hierarchical_local_rank(score, group, cls, mask)
    for c in cls.unique():
        mine = rank[(cls == c) & mask]
        assert sorted(mine.tolist()) == list(range(len(mine)))
    assert (rank[~mask] == -1).all()


def test_ties_go_to_the_earlier_sample():
    zero = torch.zeros(20_000, dtype=torch.long)
    for n in 5, 20_000: assert hierarchical_local_rank(torch.full((n,), .5), zero[:n]).tolist() == list(range(n))
    assert hierarchical_local_rank(torch.tensor([0., -0., 0.]), zero[:3]).tolist() == [0, 1, 2]


def test_nan_ranks_last_in_its_group():
    nan, inf = float('nan'), float('inf')
    score, group = torch.tensor([nan, -inf, .3, nan, .1]), torch.tensor([0, 0, 0, 1, 1])
    assert hierarchical_local_rank(score, group).tolist() == [4, 2, 0, 3, 1]
    mask = torch.tensor([True, True, True, True, False])
    assert hierarchical_local_rank(score, group, mask=mask).tolist() == [3, 2, 0, 1, -1]


def test_what_is_masked_has_no_influence():
    score, group, cls, mask = random_case(4, 200)
    rank = hierarchical_local_rank(score, group, cls, mask)
    for value in 9., -9., float('nan'), float('inf'):
        assert torch.equal(rank, hierarchical_local_rank(score.where(mask, value), group.where(mask, 5), cls.where(mask, 80), mask))
    assert torch.equal(rank[mask], hierarchical_local_rank(score[mask], group[mask], cls[mask]))


def test_uses():
    score, group, cls, mask = random_case(5, 100)
    score = score.abs()
    assert torch.equal(iou_hlr(score, group, cls, mask), hierarchical_local_rank(score, group, cls, mask))
    assert torch.equal(score_hlr(score, group, mask), hierarchical_local_rank(score, group, None, mask))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype):
    score, group, cls, _ = random_case(6, 200)
    score = score.to(dtype)
    assert iou_hlr(score, group, cls).tolist() == reference(score, group, cls)


def test_types_of_ids():
    score, group, cls, _ = random_case(7, 100)
    small = group % 7
    for t in torch.int32, torch.int16, torch.uint8:
        assert iou_hlr(score, small.to(t), (cls % 5).to(t)).tolist() == reference(score, small, cls % 5)


def test_float64_is_not_rounded():
    assert score_hlr(torch.tensor([.5, .5 + 1e-12], dtype=torch.float64), torch.tensor([0, 0])).tolist() == [1, 0]


def test_takes_part_in_no_gradient():
    assert not iou_hlr(torch.rand(4, requires_grad=True), torch.arange(4), torch.zeros(4).long()).requires_grad


# ---- defects of the released code, by their names in nbs/mmdet/released.ipynb

def test_one_key():
    "20,000 samples with close IoUs are ranked exactly; one float32 key for local rank and IoU is not"
    n = 20_000
    torch.manual_seed(0)
    iou, gt, label = .5 + torch.randperm(n)*2.**-23, torch.randperm(n) % 2000, torch.zeros(n, dtype=torch.long)
    assert len(iou.unique()) == n
    exact = reference(iou, gt, label)
    assert iou_hlr(iou, gt, label).tolist() == exact
    local = torch.tensor([0]*n)
    for g in range(2000):
        mine = (gt == g).nonzero()[:, 0]
        local[mine[iou[mine].argsort(descending=True, stable=True)]] = torch.arange(len(mine))
    one_key = torch.empty_like(local)
    one_key[(iou + (n - local.float())).argsort(descending=True, stable=True)] = torch.arange(n)
    assert one_key.tolist() != exact


# ---- errors

def test_errors_name_the_parameter():
    s, i = torch.rand(3), torch.arange(3)
    for call, text in (
        (lambda: hierarchical_local_rank(s, i[:2]), 'group must be [3]'),
        (lambda: hierarchical_local_rank(s, i, i[:1]), 'cls must be [3]'),
        (lambda: hierarchical_local_rank(s, i, i, i), 'mask must be a bool tensor'),
        (lambda: hierarchical_local_rank(s, i, i, i[:2] > 0), 'mask must be [3]'),
        (lambda: hierarchical_local_rank(i, i), 'score must be floating point'),
        (lambda: hierarchical_local_rank(s[:, None], i), 'score must be [N]'),
        (lambda: iou_hlr(s[None], i, i), 'iou must be [N]'),
        (lambda: iou_hlr(s, s, i), 'gt must hold integers'),
        (lambda: iou_hlr(s, i, i[:2]), 'label must be [3]'),
        (lambda: score_hlr(s, i[None]), 'cluster must be [3]')):
        refused(call, text)


# ---- no look at the data

@pytest.mark.parametrize('n', [0, 1, 50, 20_000])
@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_runs_on_fake_tensors(n, device):
    "Fake tensors have no values, so whatever would look at one raises"
    with FakeTensorMode():
        s, i = torch.rand(n, device=device), torch.zeros(n, dtype=torch.long, device=device)
        for m in None, s > .5:
            for rank in hierarchical_local_rank(s, i, i, m), iou_hlr(s, i, i, m), score_hlr(s, i, m):
                assert rank.shape == (n,) and rank.dtype == torch.long and rank.device.type == device


@pytest.mark.parametrize('n', [60, 20_000])
def test_compiles_to_one_graph(n):
    torch._dynamo.reset()
    score, group, cls, mask = (torch.cat([x]*(n//60)) for x in random_case(8, 60))
    for m in None, mask:
        rank = torch.compile(iou_hlr, fullgraph=True, backend='aot_eager')(score, group, cls, m)
        assert torch.equal(rank, iou_hlr(score, group, cls, m))
