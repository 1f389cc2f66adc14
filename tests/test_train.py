"nbs/train.ipynb through papermill, with tiny parameters: what a user starts, and what stops it"
import json
import os
import re
import subprocess
import sys
import pytest
import torch

pytest.importorskip('mmdet')
from pisa.lab import config, experiments, runs, train
from notebooks import ROOT, last_line, log, papermill, pictures

TINY = 'train_cfg.max_epochs=1 train_dataloader.dataset.indices=16 train_dataloader.batch_size=4 val_dataloader.dataset.indices=8'


def test_mask_rcnn_from_the_root(tmp_path):
    said = log(papermill('train', tmp_path / 'out.ipynb', detector='mask_rcnn', runs_dir=tmp_path, overrides=TINY))
    assert '4/4' in said  # the progress of the four steps is in the log
    table = runs.load(tmp_path)
    assert table.detector.tolist() == ['mask_rcnn'] and table.mask_AP.notna().all()
    assert pictures(tmp_path / 'out.ipynb') == 3  # training images, loss curves, detections
    folder = tmp_path / table.id[0]
    assert len((folder / 'scalars.jsonl').read_text().splitlines()) == 1
    record = json.loads((folder / 'run.json').read_text())
    assert record['steps'] == 4 and record['data']['fingerprint'] and torch.__version__.startswith(record['versions']['torch'])
    state = torch.load(folder / 'weights.pth', weights_only=True)
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_a_formulation_is_compared_with_the_baseline(tmp_path):
    "A baseline has no formulation, and mmdet's own heads have neither ISR nor CARL alone"
    word = dict(detector='ssd300', runs_dir=tmp_path, overrides=TINY)
    papermill('train', tmp_path / 'baseline.ipynb', method='baseline', **word)
    said = log(papermill('train', tmp_path / 'released.ipynb', formulation='released', **word))
    assert 'pisa minus baseline: ' in said and 'To train the other methods' not in said


def test_both_folders_find_the_same_runs():
    "JupyterLab runs a notebook in nbs/, papermill where the caller stands"
    code = 'from pisa.lab.files import runs_dir; print(runs_dir())'
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    where = {subprocess.run([sys.executable, '-c', code], cwd=ROOT / d, env=env, capture_output=True, text=True).stdout for d in ('.', 'nbs')}
    assert where == {f'{ROOT}/runs\n'}


def test_unknown_word_is_refused_in_one_line(tmp_path):
    said = last_line(papermill('train', 'out.ipynb', cwd=tmp_path, detector='mask-rcnn'))
    assert "detector='mask-rcnn' is not known, did you mean 'mask_rcnn'? Choose from: faster_rcnn, mask_rcnn" in said


def test_misspelt_parameter_is_refused_in_one_line(tmp_path):
    said = last_line(papermill('train', 'out.ipynb', cwd=tmp_path, run_dir='x'))
    assert "parameter='run_dir' is not known, did you mean 'runs_dir'?" in said
    for name in ('train', 'sweep', 'evaluate', 'predict', 'paper/table', 'paper/figure'): assert 'refuse_unknown(In)' in (ROOT / f'nbs/{name}.ipynb').read_text(), name


def test_a_loss_that_is_no_number_stops_training(tmp_path, spec):
    exp = experiments.experiment(overrides=TINY + ' optim_wrapper.optimizer.lr=1e30 optim_wrapper.clip_grad.max_norm=1e30')
    with pytest.raises(FloatingPointError) as e: train.train(exp, spec, tmp_path, gpus=0)
    assert re.match(r'step \d+: loss\S* is (nan|inf)', str(e.value)) and str(spec.train_images) in str(e.value)
    assert '\n' not in str(e.value)
    assert not list(tmp_path.glob('*/metrics.json'))


def test_the_same_seed_gives_the_same_run_and_is_done_once(tmp_path, spec):
    exp = experiments.experiment(overrides=TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: first, second = (train.train(exp, spec, tmp_path / d, gpus=0) for d in 'ab')
    finally: torch.set_num_threads(threads)
    for name in ('metrics.json', 'scalars.jsonl', 'detections.json'): assert (first / name).read_bytes() == (second / name).read_bytes(), name
    stamp = (first / 'metrics.json').stat().st_mtime_ns
    assert train.train(exp, spec, tmp_path / 'a', gpus=0) == first
    assert (first / 'metrics.json').stat().st_mtime_ns == stamp


def test_config_written_to_a_file_trains_with_mmengine_alone(tmp_path, spec):
    "The way to mmdet's own launcher: the config as a file holds all that is needed, our modules too"
    cfg = config.config(experiments.experiment(overrides=TINY), spec)
    cfg.dump(tmp_path / 'config.py')
    code = f"""
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile({str(tmp_path / 'config.py')!r})
cfg.work_dir = {str(tmp_path)!r}
runner = Runner.from_cfg(cfg)
runner.train()
print('steps', runner.iter, type(runner.model.roi_head).__name__)"""
    p = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'), capture_output=True, text=True)
    assert p.stdout.strip().endswith('steps 4 PrimeRoIHead'), p.stderr[-2000:]
