"Runs survive: killed at any moment, damaged checkpoints, a full or read-only disk, two processes at once"
import contextlib
import errno
import json
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
from pisa import data, experiments, launch, runs
from pisa.core import read_json

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = 'train_cfg.max_epochs=3 train_dataloader.dataset.indices=16 train_dataloader.batch_size=4 val_dataloader.dataset.indices=8'
STEPS = 12  # four an epoch
FILES = ('metrics.json', 'scalars.jsonl', 'detections.json')


def train(folder):
    torch.set_num_threads(1)
    return launch.train(experiments.experiment(overrides=OVERRIDES), data.load('shapes', n_train=64, n_val=16), folder, gpus=0)


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
        case 'step': deadly(launch.Guard, 'after_train_iter')
        case 'evaluation': deadly(launch.Progress, 'after_val_iter')
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
    context.set_forkserver_preload(['pisa.launch'])
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
    "kill -9 eight times, each later than the one before; what is there after each is whole, and the next goes on from it"
    moments = [('step', 3, []), ('step', 6, [1]), ('epoch_2.pth.sha256', 1, [1]), ('epoch_2.pth', 1, [1]), ('step', 6, [1, 2]),
               ('evaluation', 1, [2, 3]), ('weights.pth', 1, [2, 3]), ('metrics.json', 1, [2, 3])]
    for moment, n, epochs in moments:
        p = process(tmp_path, moment, n)
        p.join(120)
        assert p.exitcode == -9, (moment, n)
        path, = tmp_path.iterdir()
        assert [int(f.stem[6:]) for f in runs.checkpoints(path)] == epochs, (moment, n)
        for file in runs.checkpoints(path): runs.read_checkpoint(file, path.name)
        for file in path.glob('*.json'): json.loads(file.read_text())
        assert len(runs.load(tmp_path)) == 0
        assert list(path.rglob('.*.part')) or moment in ('step', 'evaluation')
    record = finish(tmp_path, straight[0])
    assert record['resumed'] == 7 and 'earlier' not in record  # all but the first part; the same code on the same machine
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


DAMAGE = {
    'a bit flipped': (flip, 'does not fit its checksum'),
    'cut off': (lambda file: os.truncate(file, 1000), 'does not fit its checksum'),
    'no checksum': (lambda file: Path(f'{file}.sha256').unlink(), 'its checksum is missing'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_checkpoint_is_set_aside(tmp_path, straight, stopped, kind):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path, = tmp_path.iterdir()
    first, last = runs.checkpoints(path)
    damage, reason = DAMAGE[kind]
    damage(last)
    with pytest.warns(UserWarning, match=reason) as told: state = runs.last_checkpoint(path)
    assert state['epoch'] == 1 and f'{last} is set aside as' in str(told[0].message) and '\n' not in str(told[0].message)
    assert Path(f'{last}.bad').exists() and runs.checkpoints(path) == [first]
    if kind == 'cut off': assert finish(tmp_path, straight[0])['resumed'] == 1


def test_all_checkpoints_damaged_starts_anew(tmp_path, straight, stopped):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path, = tmp_path.iterdir()
    for file in runs.checkpoints(path): flip(file)
    with pytest.warns(UserWarning, match='does not fit its checksum'): assert finish(tmp_path, straight[0])['resumed'] == 0


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
    with pytest.raises(ValueError, match=r'written by a newer pisa \(schema 99') as e: train(tmp_path)
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
        for part in ('epoch_2.pth', 'No space left on device', 'epoch_1.pth is safe'): assert part in str(e.value)
        path, = full.iterdir()
        assert [f.name for f in runs.checkpoints(path)] == ['epoch_1.pth'] and not list(path.rglob('.*.part'))
        grow(256 * 1024)
        assert finish(full, straight[0])['resumed'] == 1


def test_read_only_folder(tmp_path, stopped):
    with mounted(tmp_path, '--bind', stopped):
        subprocess.run(['mount', '-o', 'remount,ro,bind', tmp_path], check=True)
        with pytest.raises(OSError) as e: train(tmp_path)
    assert e.value.errno == errno.EROFS and '\n' not in str(e.value)
    for part in (str(tmp_path), 'Read-only file system', 'epoch_2.pth is safe'): assert part in str(e.value)


def test_record_fields(straight):
    record = read_json(straight[0] / 'run.json')
    assert record['resumed'] == 0 and record['seed'] == 0 and record['machine']['threads'] == 1 and record['machine']['host']
    assert len(record['data']['fingerprint']) == 16 and 0 < record['seconds'] <= straight[1] + 1
    assert not (straight[0] / 'checkpoints').exists()


def test_git_keeps_the_record_only():
    if subprocess.run(['git', 'rev-parse'], cwd=ROOT, capture_output=True).returncode: pytest.skip('not a git checkout')
    files = ['.lock', 'checkpoints/epoch_1.pth', 'checkpoints/epoch_1.pth.sha256', 'checkpoints/epoch_2.pth.bad', 'weights.pth',
             'run.json', 'metrics.json', 'scalars.jsonl', 'samples.npz']
    p = subprocess.run(['git', 'check-ignore', *(f'runs/an_id/{f}' for f in files)], cwd=ROOT, capture_output=True, text=True)
    assert p.stdout.split() == [f'runs/an_id/{f}' for f in files[:5]]
