"""Time of a training step on a GPU, PISA and mmdet's PISA over the baseline: `python tests/gpu/step.py [DETECTOR...] [--record]`.

Whole steps at the paper's size (see `tests/bench/step.py`), all methods in turn, measured by CUDA events; with peak memory."""
import sys
from pathlib import Path
import numpy as np
import torch
sys.path.insert(0, str(Path(__file__).parents[1] / 'bench'))
from mmdet.utils import register_all_modules
from record import against, report, words
from step import DETECTORS, PAPER, build, samples

ROUNDS = 30


def stepper(detector, method):
    _, images, size, _ = DETECTORS[detector]
    model, data = build(detector, method).cuda(), [d.cuda() for d in samples(images, size)]
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    x = torch.randn(images, 3, *(-(-s // 32) * 32 if s > 300 else s for s in size), device='cuda')
    def step():
        loss, _ = model.parse_losses(model.loss(x, data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step


def milliseconds(step):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def bench(detector):
    steps, peak = {m: stepper(detector, m) for m in ('baseline', 'pisa', 'mmdet')}, {}
    for m, step in steps.items():
        for _ in range(3): step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak[m] = torch.cuda.max_memory_allocated()
    times = np.array([[milliseconds(step) for step in steps.values()] for _ in range(ROUNDS)]) / 1000
    rows = [row | {'memory_ratio': peak[row['what']] / peak['baseline']} for row in against(times, list(steps))]
    report('gpu_step', f'{detector}: a training step on a GPU, over the baseline', rows, gpu=torch.cuda.get_device_name(), published=PAPER[detector])


if __name__ == '__main__':
    if not torch.cuda.is_available(): sys.exit('there is no GPU here: tests/bench/step.py is for the CPU')
    register_all_modules()
    for detector in words() or DETECTORS: bench(detector)
