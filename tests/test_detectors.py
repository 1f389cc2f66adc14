"Detectors as experiments configure them: weights to begin with, and what a mini backbone is asked to be"
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from pisa.lab import config, data, experiments, weights
from pisa.lab.experiments import BACKBONES, DETECTORS, SMALLER, backbones


@pytest.fixture(scope='module')
def spec():
    init_default_scope('mmdet')
    return data.load('shapes', n_train=1, n_val=1)


def build(spec, **words):
    model = MODELS.build(config.config(experiments.experiment(**words), spec).model)
    model.init_weights()
    return model


@pytest.mark.parametrize('detector', ['retinanet', 'ssd300'])
def test_weights_from_a_file(tmp_path, spec, detector):
    torch.manual_seed(0)
    given = build(spec, detector=detector).backbone.state_dict()
    torch.save(given, tmp_path / 'backbone.pth')
    torch.manual_seed(1)
    scratch = build(spec, detector=detector).backbone.state_dict()
    loaded = build(spec, detector=detector, pretrained=str(tmp_path / 'backbone.pth')).backbone.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in given.items())
    assert not all(torch.equal(scratch[k], v) for k, v in given.items())
    weights.find_weights(str(tmp_path / 'backbone.pth'))


def test_the_papers_backbones_have_a_small_relative_of_their_own():
    for detector in DETECTORS:
        assert [SMALLER[b] for b in backbones(detector, 'paper')] == list(backbones(detector, 'mini'))
        for name in backbones(detector, 'paper'):
            big, small = BACKBONES[name], BACKBONES[experiments.experiment(detector, backbone=name, scale='mini').backbone]
            assert small.width < big.width and small.depth <= big.depth and (small.groups > 1) == (big.groups > 1)


# ---- mmdet's own PISA

def batch(model, size=128):
    "One image with an object, as the model takes it"
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    g = torch.Generator().manual_seed(0)
    gt = InstanceData(bboxes=torch.tensor([[20., 20, 70, 80]]), labels=torch.tensor([1]), masks=BitmapMasks(torch.ones(1, size, size).byte().numpy(), size, size))
    meta = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size), batch_input_shape=(size, size), scale_factor=(1., 1.))
    return torch.rand(1, 3, size, size, generator=g), [DetDataSample(gt_instances=gt, ignored_instances=InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()), metainfo=meta)]


@pytest.mark.parametrize('detector', experiments.RELEASED)
def test_released_heads_train_and_predict(spec, detector):
    model = build(spec, detector=detector, formulation='released').train()
    losses = model.loss(*batch(model))
    total = sum(v.sum() if torch.is_tensor(v) else sum(x.sum() for x in v) for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert 'loss_carl' in losses and torch.isfinite(total)
    head = model.roi_head if hasattr(model, 'roi_head') else model.bbox_head
    assert any('PISA' in c.__name__ for c in type(head).__mro__)
    with torch.no_grad(): assert hasattr(model.eval().predict(*batch(model))[0], 'pred_instances')


def test_no_prediction(spec):
    "mmdet's own head for SSD lacks `loss_cls`"
    cfg = config.config(experiments.experiment('ssd300', formulation='released'), spec).model
    cfg.bbox_head.type = 'PISASSDHead'
    model = MODELS.build(cfg).eval()
    with pytest.raises(AttributeError, match='loss_cls'), torch.no_grad(): model.predict(*batch(model))
