"""What two jobs of a sweep gain over one after the other: `python tests/bench/sweep.py [--record]`, on two idle cores.

Four short trainings of one thread each, wall time, once with one job at a time and once with two; the start of each process is in it."""
import tempfile
import time
from pathlib import Path
from pisa.lab import data, sweep
from record import report

SHORT = 'train_cfg.max_epochs=2 train_dataloader.dataset.indices=480 val_dataloader.dataset.indices=64'


def seconds(tasks, jobs):
    with tempfile.TemporaryDirectory() as tmp:
        start = time.time()
        table = sweep.sweep(tasks, jobs, tmp, gpus=0, poll=0.2)
        assert (table.state == 'done').all(), table.why.tolist()
        return time.time() - start


if __name__ == '__main__':
    tasks = sweep.list_tasks(['table4/baseline', 'table4/isr', 'table4/carl', 'table4/isr-carl'], [1], specs={'shapes': data.load('shapes')}, overrides=SHORT)
    taken = {jobs: seconds(tasks, jobs) for jobs in (1, 2)}
    report('sweep', 'four trainings, one after the other and two at a time', [dict(jobs=j, seconds=s, times_as_fast=taken[1] / s) for j, s in taken.items()],
           trainings=4, steps=tasks[0].steps)
