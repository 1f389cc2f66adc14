"Running a notebook as a user does, through papermill"
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENV = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')


def papermill(notebook, to, /, cwd=ROOT, **parameters):
    "Run `nbs/NOTEBOOK.ipynb` with one thread; `to` is the executed notebook"
    options = [o for k, v in parameters.items() for o in ('-p', k, str(v))]
    command = [sys.executable, '-m', 'papermill', str(ROOT/f'nbs/{notebook}.ipynb'), str(to), *options]
    return subprocess.run([*command, '--log-output', '--no-progress-bar'], cwd=cwd, env=ENV, capture_output=True, text=True)


def last_line(process):
    "Of what a notebook that failed has written"
    assert process.returncode
    return process.stderr.strip().splitlines()[-1]


def log(process):
    "What a notebook that succeeded has written"
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout + process.stderr


def pictures(notebook):
    "How many pictures an executed notebook has"
    cells = json.loads(Path(notebook).read_text())['cells']
    return sum('image/png' in o.get('data', {}) for c in cells for o in c.get('outputs', []))
