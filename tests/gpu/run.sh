#!/usr/bin/env bash
# All that needs a GPU, in 8 minutes, without a network and without anything to compile: torch, torchvision and pytest are enough.
# tests/gpu/run.sh [PART...] [--out FILE] [--tiny]      --tiny: on the CPU with everything made tiny, to try the script itself
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=$PWD exec "${PYTHON:-python3}" tests/gpu/run.py "$@"
