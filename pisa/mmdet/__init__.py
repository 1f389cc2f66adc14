"PISA in mmdet: importing this registers samplers and heads, `custom_imports=dict(imports=['pisa.mmdet'])` in a config"
from . import samplers, single_stage, two_stage
