"Runs survive: killed at any moment, damaged checkpoints, a full or read-only disk, two processes at once"
import contextlib
import errno
import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch

pytest.importorskip('mmdet')
import pisa
from pisa.lab import data, experiments, hooks, runs, sweep, train as training
from pisa.lab.files import read_json

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = 'train_cfg.max_epochs=3 train_dataloader.dataset.indices=16 train_dataloader.batch_size=4 val_dataloader.dataset.indices=8'
STEPS = 12  # four an epoch
FILES = ('metrics.json', 'scalars.jsonl', 'detections.json')


def wanted():
    "A small training: the experiment and its data"
    return experiments.experiment(overrides=OVERRIDES), data.load('shapes', n_train=64, n_val=16)


def train(folder):
    torch.set_num_threads(1)
    return training.train(*wanted(), folder, gpus=0)


def die():
    os.kill(os.getpid(), 9)


def train_and_die(folder, moment, n):
    "In a process of its own: train, and be killed at the n-th time that a moment is reached"
    count = 0

    def deadly(owner, name, is_moment=lambda *args: True):
        real = getattr(owner, name)
        def call(*args, **kwargs):
            nonlocal count
            count += is_moment(*args)
            if count == n and is_moment(*args): die()
            return real(*args, **kwargs)
        setattr(owner, name, call)

    sys.stdout = sys.stderr = open(os.devnull, 'w')
    match moment:
        case 'step': deadly(hooks.Guard, 'after_train_iter')
        case 'evaluation': deadly(hooks.Progress, 'after_val_iter')
        case 'none': pass
        case file:  # it is written under another name, and not yet renamed
            def write_half(source, target):
                if Path(target).name == file: os.truncate(source, os.path.getsize(source) // 2)
                return Path(target).name == file
            deadly(os, 'replace', write_half)
    train(folder)


@pytest.fixture(scope='module')
def process():
    "Starts `train_and_die` in a process forked from one that has imported mmdet and trained nothing"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['pisa.lab.train'])
    def start(*args):
        p = context.Process(target=train_and_die, args=args)
        p.start()
        return p
    return start


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "The run that was not stopped, and how many seconds it took"
    threads, start = torch.get_num_threads(), time.time()
    path = train(tmp_path_factory.mktemp('straight'))
    yield path, time.time() - start
    torch.set_num_threads(threads)


def same(path, other):
    return all((path / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def finish(folder, straight):
    "Ask for the run once more, here: it is the run that was not stopped, bit for bit, and left nothing behind"
    path = train(folder)
    assert path.name == straight.name
    assert same(path, straight)
    weights, expected = (torch.load(p / 'weights.pth', weights_only=True) for p in (path, straight))
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
    assert not (path / 'checkpoints').exists() and not list(path.rglob('.*.part'))
    return read_json(path / 'run.json')


def test_killed_at_every_kind_of_moment(tmp_path, straight, process):
    "kill -9 seven times, each later than the one before; what is there after each is whole, and the next goes on from it"
    moments = [('step', 3, []), ('step', 6, [1]), ('epoch_2.pth', 1, [1]), ('step', 6, [1, 2]),
               ('evaluation', 1, [2, 3]), ('weights.pth', 1, [2, 3]), ('metrics.json', 1, [2, 3])]
    for moment, n, epochs in moments:
        p = process(tmp_path, moment, n)
        p.join(120)
        assert p.exitcode == -9, (moment, n)
        path, = tmp_path.iterdir()
        assert [int(f.stem[6:]) for f in runs.checkpoints(path)] == epochs, (moment, n)
        for file in runs.checkpoints(path): runs.read_checkpoint(file)
        for file in path.glob('*.json'): json.loads(file.read_text())
        assert len(runs.load(tmp_path)) == 0
        assert list(path.rglob('.*.part')) or moment in ('step', 'evaluation')
    record = finish(tmp_path, straight[0])
    assert record['resumed'] == 6 and record['earlier'] == []  # all but the first part; the same code on the same machine
    assert record['seconds'] > 0 and record['steps'] == STEPS


def test_killed_at_random_times(tmp_path, straight, process):
    "Again and again, after a time drawn at random, until it comes to its end"
    draw, killed = random.Random(0), 0
    for _ in range(4):
        p = process(tmp_path, 'none', 0)
        p.join(straight[1] * draw.uniform(0.1, 0.6))
        killed += p.exitcode is None
        p.kill()
        p.join()
    assert killed
    finish(tmp_path, straight[0])


@pytest.fixture(scope='module')
def stopped(tmp_path_factory, process):
    "Killed in its third epoch: two checkpoints are there"
    folder = tmp_path_factory.mktemp('stopped')
    p = process(folder, 'step', 10)
    p.join(120)
    assert p.exitcode == -9
    return folder


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def cut_off(file):
    os.truncate(file, 1000)


@pytest.mark.parametrize('damage', [flip, cut_off])
def test_damaged_checkpoint_is_set_aside(tmp_path, straight, stopped, damage):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path, = tmp_path.iterdir()
    first, last = runs.checkpoints(path)
    damage(last)
    with pytest.warns(UserWarning, match='it is damaged') as told: state = runs.last_checkpoint(path)
    assert state['epoch'] == 1 and f'{last} is renamed to' in str(told[0].message) and '\n' not in str(told[0].message)
    assert Path(f'{last}.bad').exists() and runs.checkpoints(path) == [first]
    if damage is cut_off: assert finish(tmp_path, straight[0])['resumed'] == 1


def test_all_checkpoints_damaged_starts_anew(tmp_path, straight, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path, = tmp_path.iterdir()
    for file in runs.checkpoints(path): flip(file)
    with pytest.warns(UserWarning, match='it is damaged'): assert finish(tmp_path, straight[0])['resumed'] == 0


def test_record_names_other_code_that_had_a_part(tmp_path, stopped, straight):
    "A run that began elsewhere, by an older schema"
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path, = tmp_path.iterdir()
    record = read_json(path / 'run.json')
    for key in ('schema', 'resumed', 'formulation', 'sampler', 'pretrained'): del record[key]  # as the first records were
    record['machine'] = {'cpu': 'another'}
    (path / 'run.json').write_text(json.dumps(record))
    after = finish(tmp_path, straight[0])
    assert after['resumed'] == 1 and [part['machine'] for part in after['earlier']] == [{'cpu': 'another'}]
    assert after['machine']['host'] and runs.load(tmp_path).resumed.tolist() == [1]


def test_run_of_a_newer_schema_is_left_alone(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path, = tmp_path.iterdir()
    (path / 'run.json').write_text(json.dumps(read_json(path / 'run.json') | {'schema': 99}))
    before = {f: f.read_bytes() for f in path.rglob('*') if f.is_file() and f.name != '.lock'}
    with pytest.raises(ValueError, match='written by a newer pisa') as e: train(tmp_path)
    assert '\n' not in str(e.value)
    assert before == {f: f.read_bytes() for f in path.rglob('*') if f.is_file() and f.name != '.lock'}


def test_second_process_is_told_who_trains(tmp_path, straight, process):
    p = process(tmp_path, 'none', 0)
    try:
        while not list(tmp_path.glob('*/scalars.jsonl')) and p.is_alive(): time.sleep(0.01)
        with pytest.raises(BlockingIOError, match=f'{straight[0].name} is being trained by process {p.pid} on .* since ') as e: train(tmp_path)
        assert '\n' not in str(e.value)
        with pytest.raises(BlockingIOError): runs.delete(straight[0].name, tmp_path)
    finally:
        p.join(120)
    assert p.exitcode == 0 and same(tmp_path / straight[0].name, straight[0])


def test_lock_ends_with_its_process_though_a_child_lives(tmp_path):
    "As when the training was killed and a process that loads its images was not"
    lock = runs.lock(tmp_path)
    lock.__enter__()
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.1)
        with pytest.raises(BlockingIOError): runs.lock(tmp_path).__enter__()  # the child did not release its parent's lock
        lock.__exit__(None, None, None)
        with runs.lock(tmp_path): pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@contextlib.contextmanager
def mounted(folder, *options):
    if os.geteuid() or subprocess.run(['mount', *options, folder], capture_output=True).returncode:
        pytest.skip('no file system can be mounted here: it takes root')
    try: yield
    finally: subprocess.run(['umount', '--lazy', folder], check=True)


def test_full_disk(tmp_path, straight):
    "A real one, of a size that holds the first checkpoint and not the second; made larger, the run goes on"
    full = tmp_path / 'disk'
    full.mkdir()
    with mounted(full, '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs'):
        limit = 0
        def grow(size): subprocess.run(['mount', '-o', f'remount,size={size}k', full], check=True)
        real = runs.save_checkpoint
        def tight(path, *args):
            "Leave room for less than another checkpoint after the first"
            nonlocal limit
            real(path, *args)
            if not limit:
                limit = sum(f.stat().st_blocks for f in full.rglob('*')) // 2 + 1000
                grow(limit)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, 'save_checkpoint', tight)
            with pytest.raises(OSError) as e: train(full)
        assert e.value.errno == errno.ENOSPC and '\n' not in str(e.value)
        for part in ('No space left on device', 'resumes from', 'epoch_1.pth'): assert part in str(e.value)
        path, = full.iterdir()
        assert [f.name for f in runs.checkpoints(path)] == ['epoch_1.pth'] and not list(path.rglob('.*.part'))
        grow(256 * 1024)
        assert finish(full, straight[0])['resumed'] == 1


def test_read_only_folder(tmp_path, stopped):
    with mounted(tmp_path, '--bind', stopped):
        subprocess.run(['mount', '-o', 'remount,ro,bind', tmp_path], check=True)
        with pytest.raises(OSError) as e: train(tmp_path)
    assert e.value.errno == errno.EROFS and '\n' not in str(e.value)
    for part in (str(tmp_path), 'Read-only file system', 'resumes from', 'epoch_2.pth'): assert part in str(e.value)


def test_a_refused_experiment_leaves_no_folder(tmp_path):
    exp = experiments.experiment(overrides='train_cfg.max_epoch=3')
    with pytest.raises(ValueError, match='did you mean'): training.train(exp, wanted()[1], tmp_path / 'runs', gpus=0)
    assert not (tmp_path / 'runs').exists()


def test_record_fields(straight):
    record = read_json(straight[0] / 'run.json')
    assert record['resumed'] == 0 and record['seed'] == 0 and record['machine']['threads'] == 1 and record['machine']['host']
    assert len(record['data']['fingerprint']) == 16 and 0 < record['seconds'] <= straight[1] + 1
    assert not (straight[0] / 'checkpoints').exists()


def test_git_does_not_see_own_runs():
    if subprocess.run(['git', 'rev-parse'], cwd=ROOT, capture_output=True).returncode: pytest.skip('not a git checkout')
    files = ['runs/an_id/.lock', 'runs/an_id/run.json', 'runs/an_id/checkpoints/epoch_1.pth', 'runs/mask_rcnn.ipynb', 'runs/records/an_id/run.json']
    p = subprocess.run(['git', 'check-ignore', *files], cwd=ROOT, capture_output=True, text=True)
    assert p.stdout.split() == files[:4]


# ---- what a record says can be trusted

def git(folder, *args):
    return subprocess.run(['git', '-C', folder, '-c', 'user.name=a', '-c', 'user.email=a@b', *args], capture_output=True, text=True, check=True).stdout.strip()


def checkout(folder):
    "A git repository with a module in pisa/, and its commit"
    (folder / 'pisa').mkdir(parents=True)
    (folder / 'pisa/__init__.py').write_text(f'# {folder}\n')
    git(folder, 'init', '-q')
    git(folder, 'add', '-A')
    git(folder, 'commit', '-qm', 'one')
    return git(folder, 'rev-parse', 'HEAD')


def test_revision_is_that_of_the_code_wherever_it_is_called(tmp_path, monkeypatch):
    here, there = checkout(tmp_path / 'here'), checkout(tmp_path / 'there')
    code = lambda folder: monkeypatch.setattr(pisa, '__file__', str(folder / 'pisa/__init__.py'))
    monkeypatch.chdir(tmp_path / 'there')
    code(tmp_path / 'here')
    assert runs.git_state() == {'revision': here, 'dirty': False} and here != there
    (tmp_path / 'here/pisa/extra.py').write_text('x = 1')
    assert runs.git_state()['dirty'] is True  # a module that git does not know
    (tmp_path / 'here/pisa/extra.py').unlink()
    (tmp_path / 'here/notes.txt').write_text('')
    assert runs.git_state()['dirty'] is False
    (tmp_path / 'here/pisa/__init__.py').write_text('x = 1')
    assert runs.git_state()['dirty'] is True
    shutil.copytree(tmp_path / 'here/pisa', tmp_path / 'there/venv/site-packages/pisa')
    code(tmp_path / 'there/venv/site-packages')  # installed in another project's checkout
    assert runs.git_state() == {'revision': None, 'dirty': None}


@pytest.fixture
def recorded(tmp_path):
    "The folder of a run with a made-up result"
    record = runs.describe(*wanted())
    path = runs.folder(record['id'], tmp_path)
    path.mkdir()
    (path / 'run.json').write_text(json.dumps(record))
    (path / 'metrics.json').write_text('{"AP": 12.5}')
    return path


def task_of(path):
    "The task of a sweep that trains a run"
    return sweep.Task(path.name, 'table4/isr', *wanted(), STEPS)


@pytest.mark.parametrize('change,reason', [
    (lambda r: [], 'does not describe this run'), (lambda r: r | {'schema': '1'}, '(schema is missing or wrong)'),
    (lambda r: r | {'overrides': 3}, '(overrides is missing or wrong)'), (lambda r: r | {'id': 'another'}, '(id is missing or wrong)'),
    (lambda r: r | {'data': {}}, '(data.fingerprint is missing or wrong)'), (lambda r: r | {'seconds': None}, '(seconds is missing or wrong)'),
    (lambda r: r | {'schema': 99}, 'was written by a newer pisa'),
    *((lambda r, key=key: {k: v for k, v in r.items() if k != key}, key) for key in ('machine', 'backbone', 'data', 'id', 'seed', 'git'))])
def test_a_record_that_is_damaged_or_of_another_run(recorded, change, reason):
    "It is refused in one line that names the file; the other runs are shown"
    folder, record = recorded.parent, read_json(recorded / 'run.json')
    good = runs.folder('good', folder)
    shutil.copytree(recorded, good)
    (good / 'run.json').write_text(json.dumps(record | {'id': 'good'}))
    (recorded / 'run.json').write_text(json.dumps(change(record)))
    with pytest.raises(ValueError) as e: runs.read_record(recorded)
    assert str(recorded / 'run.json') in str(e.value) and reason in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(ValueError, match='run.json'): train(folder)  # though it is complete
    with pytest.warns(UserWarning, match=f'{recorded.name} is left out: ') as told: assert runs.load(folder).id.tolist() == ['good']
    assert len(told) == 1 and '\n' not in str(told[0].message)
    with pytest.warns(UserWarning, match='is left out'): sweep.row_costs(runs=folder)


@pytest.mark.parametrize('content,reason', [
    (b'', 'Expecting value'), (b'{"AP": ', 'Expecting value'), (b'{"AP": "\xff"}', "can't decode"), (b'[]', 'does not hold the metrics'),
    (b'{"AP50": 30.0}', 'does not hold the metrics'), (b'{"AP": "12.5"}', 'does not hold the metrics')])
def test_metrics_that_are_damaged(recorded, content, reason):
    "One line names the file and what can be done; the run is in no table, is failed in a sweep, and stays as it is"
    file, folder = recorded / 'metrics.json', recorded.parent
    file.write_bytes(content)
    with pytest.raises(ValueError) as e: runs.read_metrics(recorded)
    said = str(e.value)
    assert said.startswith(f'{file} ') and reason in said and 'delete it' in said and '\n' not in said
    with pytest.warns(UserWarning) as told: assert len(runs.load(folder)) == 0
    assert [str(w.message) for w in told] == [f'{recorded.name} is left out: {said}']
    for table in (sweep.progress([task_of(recorded)], folder), sweep.sweep([task_of(recorded)], 1, folder, gpus=0)):
        assert table[['state', 'step', 'why']].values.tolist() == [['failed', 0, said]]
    assert runs.is_complete(recorded) and file.read_bytes() == content
    runs.save_checkpoint(recorded, 3, {})
    with pytest.raises(ValueError, match='metrics.json'): train(folder)
    assert runs.checkpoints(recorded)


def test_metrics_where_nothing_is_to_be_found(recorded):
    "COCO's metrics have no value there, and that is no damage"
    (recorded / 'metrics.json').write_text('{"AP": null, "AP50": 3}')
    for table in (runs.load(recorded.parent), sweep.progress([task_of(recorded)], recorded.parent)): assert math.isnan(table.AP[0]) and table.AP.dtype == float
    assert sweep.progress([task_of(recorded)], recorded.parent).state.tolist() == ['done'] and runs.load(recorded.parent).AP50.tolist() == [3]


def test_a_damaged_record_is_failed_in_a_sweep(recorded):
    (recorded / 'run.json').write_text('{"id": ')
    row = sweep.progress([task_of(recorded)], recorded.parent).iloc[0]
    assert row.state == 'failed' and row.why.startswith(f'{recorded / "run.json"} is not JSON')


def test_a_record_without_times(recorded):
    "It is listed like the others"
    record = read_json(recorded / 'run.json')
    assert 'seconds' not in record
    other = runs.folder('other', recorded.parent)
    shutil.copytree(recorded, other)
    (other / 'run.json').write_text(json.dumps(record | {'id': 'other', 'seconds': 60., 'steps': STEPS}))
    assert runs.load(recorded.parent).seconds.tolist() == [pytest.approx(math.nan, nan_ok=True), 60.]
    row = sweep.progress([task_of(recorded)], recorded.parent).iloc[0]
    assert row.state == 'done' and math.isnan(row.minutes) and sweep.task_minutes([task_of(recorded)], recorded.parent).tolist() == [1.]


@pytest.mark.parametrize('content', ['{"step": 10, "loss": 1.5}\n{"step": 20, "lo', '{"step": 1\n', 'x\n'])
def test_scalars_that_are_cut_off(recorded, content):
    (recorded / 'scalars.jsonl').write_text(content)
    with pytest.raises(ValueError) as e: runs.scalars(recorded.name, recorded.parent)
    assert str(e.value).startswith(f'{recorded / "scalars.jsonl"} is damaged (') and 'delete the line that is cut off' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('run', [None, 7, ['a_run'], Path('a_run')])
def test_an_id_that_is_no_word(run, tmp_path):
    for f in (runs.folder, runs.scalars, runs.delete):
        with pytest.raises(ValueError, match='^run=.* is not the id of a run'): f(run, tmp_path)


def test_a_run_that_was_done_by_another_number_of_processes(recorded, capsys):
    "It is not in the id, so it is said"
    assert training.train(*wanted(), recorded.parent, gpus=0) == recorded and not capsys.readouterr().out
    assert training.train(*wanted(), recorded.parent, gpus=0, processes=2) == recorded
    assert 'is complete. It was trained with processes=1, not 2' in capsys.readouterr().out


def test_a_run_on_a_disk_that_cannot_be_written_to_is_not_deleted(recorded):
    with mounted(recorded.parent, '--bind', recorded.parent):
        subprocess.run(['mount', '-o', 'remount,ro,bind', recorded.parent], check=True)
        with pytest.raises(OSError) as e: runs.delete(recorded.name, recorded.parent)
    assert f'Read-only file system: {str(recorded)!r}'[:-1] in str(e.value)
    assert len(runs.load(recorded.parent)) == 1
