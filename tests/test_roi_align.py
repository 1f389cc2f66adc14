"RoIAlign by matrix products against torchvision's"
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from torchvision.ops import roi_align
import pisa.roi_align as ra


@pytest.mark.parametrize('ratio', [1, 2, 3])
@pytest.mark.parametrize('bins', [1, 7, 14])
@pytest.mark.parametrize('height,width', [(32, 32), (5, 40), (1, 3)])
def test_equals_torchvision(ratio, bins, height, width):
    g = torch.Generator().manual_seed(bins)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    feats = rand(4, 3, height, width).requires_grad_()
    size = torch.tensor([width, height]) * 4.
    corner = rand(60, 2) * size * 1.4 - 0.2 * size  # also outside the map
    image = torch.tensor([0, 2, 3]).repeat_interleave(20)[:, None]  # the second image has none
    rois = torch.cat([image, corner, corner + rand(60, 2) * size * 0.8], 1)
    rois[5, 3:] = rois[5, 1:3]  # without extent
    ours, theirs = ra.separable_roi_align(feats, rois, bins, 1 / 4, ratio), roi_align(feats, rois, bins, 1 / 4, ratio, True)
    torch.testing.assert_close(ours, theirs)
    seed = rand(*ours.shape)
    torch.testing.assert_close(*(torch.autograd.grad(o, feats, seed)[0] for o in (ours, theirs)))


def test_no_rois():
    assert ra.separable_roi_align(torch.rand(2, 3, 8, 8), torch.zeros(0, 5), 7, 1 / 4).shape == (0, 3, 7, 7)


@pytest.mark.parametrize('trained', [True, False])  # by products on all levels, or on the smallest alone
@pytest.mark.parametrize('largest,factor', [(150, None), (150, 1.5), (20, None)])  # 20: all RoIs are on the first level
def test_extractor_equals_mmdets(trained, largest, factor):
    levels = tuple(torch.rand(2, 8, 64 // s, 64 // s, requires_grad=trained) for s in (1, 2, 4))
    corner = torch.rand(50, 2) * 200
    rois = torch.cat([torch.arange(2).repeat_interleave(25)[:, None], corner, corner + 4 + torch.rand(50, 2) * largest], 1)
    build = lambda kind, **layer: MODELS.build(dict(type=kind, out_channels=8, featmap_strides=[4, 8, 16], finest_scale=28,
                                                    roi_layer=dict(output_size=7, sampling_ratio=1, **layer)))
    ours, theirs = (e(levels, rois, factor) for e in (build('SeparableRoIExtractor'), build('SingleRoIExtractor', type='RoIAlign')))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if not trained: return
    seed = torch.rand_like(ours)
    for a, b in zip(*(torch.autograd.grad(out, levels, seed) for out in (ours, theirs))):  # of each level, without RoIs too
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_extractor_without_rois():
    extractor = MODELS.build(dict(type='SeparableRoIExtractor', out_channels=8, featmap_strides=[4, 8], roi_layer=dict(output_size=7, sampling_ratio=1)))
    levels = tuple(torch.rand(2, 8, n, n, requires_grad=True) for n in (32, 16))
    out = extractor(levels, torch.zeros(0, 5))
    assert out.shape == (0, 8, 7, 7) and out.requires_grad
