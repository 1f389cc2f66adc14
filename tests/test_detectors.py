"Detectors as experiments configure them: weights to begin with, and what a mini backbone is asked to be"
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from pisa.lab import config, data, experiments, weights
from pisa.lab.experiments import BACKBONES, DETECTORS, SMALLER, backbones
from refusal import refused


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


def test_weights_that_cannot_be_had(monkeypatch, spec):
    def offline(*args, **kwargs): raise OSError('<urlopen error Name or service not known>')
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', offline)
    cfg = config.config(experiments.experiment('retinanet', scale='paper'), spec)
    with pytest.raises(FileNotFoundError) as e: weights.find_weights(cfg.model.backbone.init_cfg['checkpoint'])
    for part in ('torchvision://resnet50', 'Name or service not known', 'pretrained=/path', 'pretrained=none'): assert part in str(e.value)
    assert '\n' not in str(e.value)


def test_a_file_that_is_not_there():
    refused(lambda: experiments.experiment(pretrained='/no/such.pth'), 'is no file')


def test_the_papers_backbones_have_a_small_relative_of_their_own():
    for detector in DETECTORS:
        assert [SMALLER[b] for b in backbones(detector, 'paper')] == list(backbones(detector, 'mini'))
        for name in backbones(detector, 'paper'):
            big, small = BACKBONES[name], BACKBONES[experiments.experiment(detector, backbone=name, scale='mini').backbone]
            assert small.width < big.width and small.depth <= big.depth and (small.groups > 1) == (big.groups > 1)
