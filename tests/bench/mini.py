"""The time of a training step at mini scale, divided by that of a step without the optimizations: `python tests/bench/mini.py [DETECTOR...] [--record]`.

The step without them has mmdet's RoI extractor, float32, the usual layout of tensors, and an optimizer that is not fused.

Both in turn, on the same images of `shapes`, CPU time of one thread: forward, losses, backward and the optimizer's step. The records of runs
have the time of whole trainings; their `seconds` include evaluation."""
import contextlib
import itertools
import logging
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pisa.lab import config, data, experiments
from pisa.lab.experiments import DETECTORS
from pisa.lab.experiments import bfloat16_units
from pisa.lab.speed import channels_last
from record import against, paired, report, words

SLOW = 'optim_wrapper.optimizer.fused=False'
EXTRACTOR = ' model.roi_head.{}.type=SingleRoIExtractor'


def stepper(detector, spec, overrides='', precision='auto'):
    cfg = config.config(experiments.experiment(detector, overrides=overrides, precision=precision), spec)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(None):
        model = MODELS.build(cfg.model).train()
        model.init_weights()
        batches = itertools.cycle(list(itertools.islice(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)), 8)))
    if not overrides: channels_last(model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    return lambda: model.train_step(next(batches), optimizer)


def bench(detector):
    spec = data.load('shapes')
    model = config.config(experiments.experiment(detector), spec).model
    slow = SLOW + ''.join(EXTRACTOR.format(key) for key in ('bbox_roi_extractor', 'mask_roi_extractor') if key in model.get('roi_head', {}))
    steps = {'plain': stepper(detector, spec, slow, 'float32'), 'as it is': stepper(detector, spec)}
    report('mini', f'{detector}: a training step at mini scale', against(paired(steps, 16), list(steps)), images=8,
           bfloat16=bfloat16_units() or 'no units')


if __name__ == '__main__':
    logging.disable()
    register_all_modules()
    init_default_scope('mmdet')
    for detector in words() or DETECTORS: bench(detector)
