"""What a bench measured: printed, and with `--record` kept in `runs/records/bench/NAME.json`, which `nbs/bench.ipynb` draws."""
import sys
import time
import numpy as np
import pandas as pd
import torch
from pisa.lab import runs
from pisa.lab.files import records_dir, write_json


def paired(functions, rounds, clock=time.process_time, repeats=1):
    """Seconds of each function, [rounds, functions]: every round runs all of them once, so that what else the machine does meets all alike.

    Each round begins with another, since what ran before leaves its memory behind."""
    functions = list(functions.values())
    for f in functions: f()  # warms up
    seconds = np.empty((rounds, len(functions)))
    for i in range(rounds):
        for j in np.roll(range(len(functions)), -i):
            start = clock()
            for _ in range(repeats): functions[j]()
            seconds[i, j] = (clock() - start) / repeats
    return seconds


def against(seconds, names, base=0):
    "A row for each function: its time over that of function `base` in the same round, median and quartiles, and its median time"
    q = np.quantile(seconds / seconds[:, base:base + 1], [0.5, 0.25, 0.75], axis=0)
    return [dict(what=name, ratio=q[0, j], low=q[1, j], high=q[2, j], ms=1000 * float(np.median(seconds[:, j]))) for j, name in enumerate(names)]


def report(name, title, rows, **about):
    "Print a table; with `--record` keep it too, beside the others of this bench"
    print(f'\n{title}' + ''.join(f'; {k} {v}' for k, v in about.items()))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f'{x:.4g}'), flush=True)
    if '--record' not in sys.argv: return
    file = records_dir() / 'bench' / f'{name}.json'
    tables = _written.setdefault(name, [])
    tables.append({'title': title, 'about': about, 'rows': rows})
    write_json(file, {'git': runs.git_state(), 'versions': runs.versions(), 'machine': runs.machine(), 'tables': tables})


_written = {}
words = lambda: [a for a in sys.argv[1:] if a != '--record']
torch.set_num_threads(1)
