"Made-up runs, for the examples of the notebooks beside this file"
import dataclasses
import numpy as np
import pandas as pd
from pisa.lab.rows import row_experiment


def made_up_runs(rows):
    "Runs at mini scale, as `pisa.lab.tables.read_runs` gives them; `rows` has AP and number of seeds of each row"
    rng, out = np.random.default_rng(1), []
    seed_effect = rng.normal(0, 1, 3)
    for row, (mean, seeds) in rows.items():
        exp = row_experiment(row, scale='mini', seed=0)
        for seed in range(seeds):
            ap = mean + seed_effect[seed] + rng.normal(0, .5)
            metrics = {'AP': ap, 'AP50': ap + 25, 'AP75': 1.2*ap}
            out.append({**dataclasses.asdict(exp), **metrics, 'seed': seed, 'id': f'{row}-s{seed}',
                        'row_name': row.partition('/')[2], 'experiment': exp})
    return pd.DataFrame(out).assign(source='record', recipe=5, seconds=400., train_time=.4, data_fingerprint='abc',
                                    data_note='made up', machine_processes=1, machine_threads=1, machine_gpu=None)


MADE = made_up_runs({'table3/R-R': (44, 3), 'table3/C-R': (47.5, 3), 'table3/R-H*': (44.2, 3), 'table3/H*-R': (41, 1)})
