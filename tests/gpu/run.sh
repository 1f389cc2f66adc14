#!/usr/bin/env bash
# All that needs a GPU, in about 8 minutes, without a network: torch, torchvision and pytest are enough. mmcv need not be compiled.
# tests/gpu/run.sh [PART...] [--out FILE] [--tiny]      --tiny, with --out: on the CPU with everything made tiny, to try the script itself
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=$PWD exec "${PYTHON:-python3}" tests/gpu/run.py "$@"
