"Every detector of the paper at its real size: built from its experiment, one training step on two images"
import dataclasses
import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData
from pisa.lab import config, data, experiments
from pisa.lab.experiments import DETECTORS, backbones

WORDS = [dict(detector=d, backbone=b) for d in DETECTORS for b in backbones(d, 'paper')]
WORDS += [dict(detector=d, backbone=backbones(d, 'paper')[0], method='baseline') for d in DETECTORS]
WORDS += [dict(detector='faster_rcnn', backbone='r50', **w) for w in (dict(formulation='v2'), *(dict(sampler=s) for s in ('H*/R', 'H/H', 'H*/H*', 'R/H*')))]


@pytest.fixture(scope='module')
def spec():
    return dataclasses.replace(data.load('shapes', n_train=1, n_val=1), classes=tuple(f'class {i}' for i in range(80)), has_masks=True)


def batch(height, width, pad=32):
    "Two images as the dataloader hands them over, with objects of all sizes"
    g = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for _ in range(2):
        side = torch.tensor([12., 20, 40, 70, 110, 180, 250]).clamp(max=min(height, width) * 0.8)
        corner = torch.rand(7, 2, generator=g) * (torch.tensor([width, height]) - side[:, None])
        boxes = torch.cat([corner, corner + side[:, None]], 1)
        masks = np.zeros((7, height, width), np.uint8)
        for m, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()): m[y1:y2, x1:x2] = 1
        gts = InstanceData(bboxes=boxes, labels=torch.randint(80, (7,), generator=g), masks=BitmapMasks(masks, height, width))
        inputs.append(torch.randint(256, (3, height, width), generator=g, dtype=torch.uint8))
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1., 1.), img_id=0, img_path='')
        samples.append(DetDataSample(metainfo=meta, gt_instances=gts, ignored_instances=InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())))
    return dict(inputs=inputs, data_samples=samples)


def stepped(spec, **words):
    "A model after one training step, with its gradients, and its state before it"
    init_default_scope('mmdet')
    set_random_seed(0)
    cfg = config.config(experiments.experiment(scale='paper', **words), spec)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    size = (300, 300) if words['detector'] == 'ssd300' else (800, 1333)
    inputs = model.data_preprocessor(batch(*size), True)
    losses, terms = model.parse_losses(model(**inputs, mode='loss'))
    assert {k: v for k, v in terms.items() if not torch.isfinite(v)} == {} and losses > 0
    losses.backward()
    optimizer.step()
    return model, before


@pytest.mark.slow
@pytest.mark.parametrize('words', WORDS, ids=lambda w: '-'.join(w.values()))
def test_a_training_step(spec, words):
    model, before = stepped(spec, pretrained='none', **words)
    assert [k for k, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert any(not torch.equal(v, before[k]) for k, v in model.named_parameters())


def weights(spec, file, **words):
    "Weights of a backbone as if it had been trained: nothing in them is zero by construction"
    init_default_scope('mmdet')
    torch.manual_seed(0)
    backbone = MODELS.build(config.config(experiments.experiment(scale='paper', pretrained='none', **words), spec).model.backbone)
    backbone.init_weights()
    state = backbone.state_dict()
    for k, v in state.items():  # a new ResNet's branches end in a batch norm of weight 0
        if v.dim() == 1 and v.is_floating_point() and not k.endswith('running_var'): v.uniform_(0.1, 0.3)
    torch.save(state, file)
    return state


@pytest.mark.slow
@pytest.mark.parametrize('words', [dict(detector='faster_rcnn', backbone='r50'), dict(detector='retinanet', backbone='x101_32x4d'),
                                   dict(detector='ssd300', backbone='vgg16')], ids=lambda w: '-'.join(w.values()))
def test_a_step_from_pretrained_weights(tmp_path, spec, words):
    "The stem, the first stage and all statistics of batch norm of a ResNet stay as they were loaded; everything else is trained"
    given = weights(spec, tmp_path / 'backbone.pth', **words)
    model, before = stepped(spec, pretrained=str(tmp_path / 'backbone.pth'), **words)
    assert all(torch.equal(before[f'backbone.{k}'], v) for k, v in given.items())
    resnet = words['detector'] != 'ssd300'
    is_frozen = lambda k: resnet and k.startswith(('backbone.conv1.', 'backbone.bn1.', 'backbone.layer1.'))
    frozen = [k for k, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [k for k, _ in model.named_parameters() if is_frozen(k)] and bool(frozen) == resnet
    gradients = {k: p.grad for k, p in model.named_parameters()}
    assert [k for k in frozen if gradients[k] is not None] == []
    trained = {k: g for k, g in gradients.items() if k not in frozen}
    assert [k for k, g in trained.items() if g is None or not torch.isfinite(g).all()] == []
    assert [k for k, g in trained.items() if not g.any()] == []
    after = model.state_dict()
    assert [k for k in after if is_frozen(k) or k.startswith('backbone.') and 'running_' in k if not torch.equal(after[k], before[k])] == []
    assert [k for k in trained if torch.equal(after[k], before[k])] == []
