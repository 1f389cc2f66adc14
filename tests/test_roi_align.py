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


def test_extractor_equals_mmdets():
    levels = tuple(torch.rand(2, 8, 64 // s, 64 // s) for s in (1, 2, 4))
    corner = torch.rand(50, 2) * 200
    rois = torch.cat([torch.arange(2).repeat_interleave(25)[:, None], corner, corner + 4 + torch.rand(50, 2) * 150], 1)
    build = lambda kind, **layer: MODELS.build(dict(type=kind, out_channels=8, featmap_strides=[4, 8, 16], roi_layer=dict(output_size=7, sampling_ratio=1, **layer)))
    ours, theirs = build('SeparableRoIExtractor')(levels, rois), build('SingleRoIExtractor', type='RoIAlign')(levels, rois)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
