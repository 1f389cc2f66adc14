"PISA in mmdet: importing this registers samplers and heads, `custom_imports=dict(imports=['pisa.mmdet'])` in a config"
try: import mmcv.ops
except ModuleNotFoundError as e:
    if e.name != 'mmcv._ext': raise
    raise ImportError('mmcv was built without its operators, as pip does by itself: `python .ci/setup_venv.py ENVIRONMENT` of pisa '
                      'builds it with them, or install a wheel of mmcv that has them') from None
from . import samplers, single_stage, two_stage
