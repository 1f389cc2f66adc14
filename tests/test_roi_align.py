"RoIAlign by bags of pixels against torchvision's and mmdet's"
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from torchvision.ops import roi_align
import pisa.lab.roi_align as ra


def one_level(feats, rois, *rest): return ra.bag_roi_align((feats,), rois, torch.zeros(len(rois), dtype=torch.int), *rest)


@pytest.mark.parametrize('ratio', [1, 2, 3])
@pytest.mark.parametrize('bins', [1, 7, 14])
@pytest.mark.parametrize('height,width', [(32, 32), (5, 40), (1, 3)])
def test_equals_torchvision(ratio, bins, height, width):
    g = torch.Generator().manual_seed(bins)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    feats = rand(4, 3, height, width).requires_grad_()
    size = torch.tensor([width, height]) * 4.
    corner = rand(60, 2) * size * 1.4 - 0.2 * size  # also outside the map
    image = torch.tensor([3, 0, 2]).repeat_interleave(20)[:, None]  # the second image has none
    rois = torch.cat([image, corner, corner + rand(60, 2) * size * 0.8], 1)
    rois[5, 3:] = rois[5, 1:3]  # without extent
    ours, theirs = one_level(feats, rois, bins, [1 / 4], ratio), roi_align(feats, rois, bins, 1 / 4, ratio, True)
    torch.testing.assert_close(ours, theirs)
    seed = rand(*ours.shape)
    torch.testing.assert_close(*(torch.autograd.grad(o, feats, seed)[0] for o in (ours, theirs)))


def test_rois_without_numbers():
    feats = torch.rand(2, 3, 8, 8)
    rois = torch.tensor([[0, 1, 1, 9, 9], [1, float('nan'), 1, 9, 9], [1, 1, 1, float('inf'), 9], [1, 1, 1, 9, 9]])
    out = one_level(feats, rois, 7, [1 / 4])
    torch.testing.assert_close(out[[0, 3]], roi_align(feats, rois[[0, 3]], 7, 1 / 4, 1, True))
    assert not out[1:3].any()


@pytest.mark.parametrize('bad', [-1, 2])
def test_image_that_is_not_there(bad):
    with pytest.raises(ValueError, match='rois name images'): one_level(torch.rand(2, 3, 8, 8), torch.tensor([[bad, 1., 1, 9, 9]]), 7, [1 / 4])


@pytest.mark.parametrize('ratio', [1, 2, 0])  # 0: as many points as there are pixels, which is mmdet's
@pytest.mark.parametrize('trained', [True, False])
@pytest.mark.parametrize('largest,factor', [(150, None), (150, 1.5), (20, None)])  # 20: all RoIs are on the first level
def test_extractor_equals_mmdets(ratio, trained, largest, factor):
    levels = tuple(torch.rand(2, 8, 64 // s, 64 // s, requires_grad=trained) for s in (1, 2, 4))
    corner = torch.rand(50, 2) * 200
    rois = torch.cat([torch.arange(2).repeat_interleave(25)[:, None], corner, corner + 4 + torch.rand(50, 2) * largest], 1)
    ours, theirs = (MODELS.build(dict(type=kind, out_channels=8, featmap_strides=[4, 8, 16], finest_scale=28, roi_layer=dict(
        type='RoIAlign', output_size=7, sampling_ratio=ratio)))(levels, rois, factor) for kind in ('BagRoIExtractor', 'SingleRoIExtractor'))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if not trained: return
    seed = torch.rand_like(ours)
    for a, b in zip(*(torch.autograd.grad(out, levels, seed) for out in (ours, theirs))):  # of each level, without RoIs too
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('other', [dict(pool_mode='max'), dict(aligned=False)])
def test_other_pooling_is_mmdets(other):
    levels, rois = (torch.rand(1, 8, 32, 32),), torch.tensor([[0, 3., 5, 60, 41]])
    ours, theirs = (MODELS.build(dict(type=kind, out_channels=8, featmap_strides=[4], roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2, **other)))(
        levels, rois) for kind in ('BagRoIExtractor', 'SingleRoIExtractor'))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize('ratio', [1, 0])
def test_not_rounded_under_autocast(ratio):
    extractor = MODELS.build(dict(type='BagRoIExtractor', out_channels=8, featmap_strides=[4], roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=ratio)))
    level, rois = torch.rand(1, 8, 64, 64).bfloat16(), torch.tensor([[0, 201.3, 5, 230, 41]])
    with torch.autocast('cpu', torch.bfloat16): out = extractor((level,), rois)
    torch.testing.assert_close(out, extractor((level.float(),), rois), rtol=0, atol=0)


def test_extractor_without_rois():
    extractor = MODELS.build(dict(type='BagRoIExtractor', out_channels=8, featmap_strides=[4, 8], roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1)))
    levels = tuple(torch.rand(2, 8, n, n, requires_grad=True) for n in (32, 16))
    out = extractor(levels, torch.zeros(0, 5))
    assert out.shape == (0, 8, 7, 7) and out.requires_grad
