"""The time of a training step at mini scale in bfloat16, divided by that in float32, on this processor and on older ones: `python tests/bench/precision.py [--record]`.

oneDNN and torch are limited to the instructions of an older processor (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY), each in a process of its own.
Both precisions in turn, on the same images of `shapes`, CPU time of one thread."""
import json
import os
import subprocess
import sys
from mini import data, init_default_scope, logging, register_all_modules, stepper
from pisa.lab.runs import bfloat16_units
from record import against, paired, report

LESSER = {'AVX-512 without units for bfloat16': dict(ONEDNN_MAX_CPU_ISA='AVX512_CORE_VNNI'),
          'AVX2': dict(ONEDNN_MAX_CPU_ISA='AVX2', ATEN_CPU_CAPABILITY='avx2')}


def ratio(detector):
    "The row of bfloat16, see `against`"
    logging.disable()
    register_all_modules()
    init_default_scope('mmdet')
    spec = data.load('shapes')
    steps = {p: stepper(detector, spec, precision=p) for p in ('float32', 'bfloat16')}
    return against(paired(steps, 8), list(steps))[1]


if __name__ == '__main__':
    if 'ROW' in os.environ: sys.exit(print(json.dumps(ratio(os.environ['ROW']))))
    for detector in ('faster_rcnn', 'retinanet'):
        rows = []
        for name, env in {f'this processor: {bfloat16_units() or "no units"}': {}, **LESSER}.items():
            p = subprocess.run([sys.executable, __file__], env=os.environ | env | {'ROW': detector}, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(p.stdout.splitlines()[-1]) | {'what': name})
        report('precision', f'{detector}: bfloat16 over float32', rows, images=8)
