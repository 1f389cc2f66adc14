"Fixtures that several tests share, and the path to the small heads and made-up runs of the notebooks"
import sys
from pathlib import Path
import pytest
from threads import one_thread as with_one_thread

for folder in ('mmdet', 'lab'): sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'nbs'/folder))  # small.py, made_up.py


@pytest.fixture(scope='session')
def spec():
    "64 images of `shapes` to train on, 16 to evaluate on"
    pytest.importorskip('pycocotools')
    from pisa.lab import data
    return data.load('shapes', n_train=64, n_val=16)


@pytest.fixture
def one_thread():
    with with_one_thread(): yield
