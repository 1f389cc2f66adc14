"""The time of a training step at mini scale in bfloat16, divided by that in float32: `python tests/bench/precision.py [--record]`.

Products of bfloat16 are taken by torch, with the units of the processor if it has them, or in float32 by `pisa.lab.speed.RoundedProducts`.
All in turn, on the same images of `shapes`, CPU time of one thread."""
from mini import bfloat16_units, data, init_default_scope, logging, register_all_modules, stepper
from pisa.lab import speed
from record import against, paired, report


def variants(detector, spec):
    "A training step of each kind"
    steps = {p: stepper(detector, spec, precision=p) for p in ('float32', 'bfloat16')}

    def by(units):
        speed.bfloat16_units = lambda: units
        steps['bfloat16']()

    return {'float32': steps['float32'], "bfloat16 by torch's own products": lambda: by('given'), 'bfloat16 by RoundedProducts': lambda: by(None)}


if __name__ == '__main__':
    logging.disable()
    register_all_modules()
    init_default_scope('mmdet')
    spec = data.load('shapes')
    for detector in ('faster_rcnn', 'retinanet'):
        steps = variants(detector, spec)
        report('precision', f'{detector}: bfloat16 over float32', against(paired(steps, 8), list(steps)), images=8,
               units=bfloat16_units() or 'none')
