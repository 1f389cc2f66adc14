"Several processes, over gloo on the CPU: what they compute, what ends them, what they say when one fails"
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import groupby
from pathlib import Path
import pytest
import torch

pytest.importorskip('mmdet')
from pisa.lab import data, experiments, processes, rows, runs, train
from pisa.lab.files import read_json

# Nothing is left to chance: no flips, batch norm as in evaluation, anchors are not sampled, ISR ranks the positives of all processes together
SAME = ('train_cfg.max_epochs=3 train_dataloader.dataset.indices=20 train_dataloader.batch_size=4 val_dataloader.dataset.indices=7 '
        'train_dataloader.dataset.pipeline.3.prob=0.0 model.backbone.norm_eval=True model.train_cfg.isr.scope=world '
        'optim_wrapper.optimizer.type=SGD optim_wrapper.optimizer.lr=0.01')
pytestmark = pytest.mark.usefixtures('one_thread')
EXPERIMENT = experiments.experiment('atss', 'isr', overrides=SAME, precision='float32')


def own_processes():
    "Ids of the processes that work for a run of these tests, by rank"
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        try: words, state = (folder / 'cmdline').read_bytes(), (folder / 'stat').read_text().rpartition(')')[2].split()[0]
        except OSError: continue
        if b'from pisa.lab.processes import join_and_work' in words and str(os.getpid()).encode() in words and state != 'Z':
            found[int(words.split(b'\0')[-2])] = int(folder.name)
    return found


def listening():
    "Local addresses (hex) that the processes of a run listen on"
    sockets = set()
    for pid in own_processes().values():
        for fd in Path(f'/proc/{pid}/fd').glob('*'):
            try: sockets |= set(re.findall(r'socket:\[(\d+)\]', os.readlink(fd)))
            except OSError: pass
    lines = [line.split() for name in ('tcp', 'tcp6') for line in Path(f'/proc/net/{name}').read_text().splitlines()[1:]]
    return {line[1].split(':')[0] for line in lines if line[3] == '0A' and line[9] in sockets}


def when(condition, act):
    "In a thread: act as soon as a condition holds"
    def wait():
        deadline = time.time() + 120
        while not condition():
            if time.time() > deadline: return
            time.sleep(0.02)
        act()
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def all_gone():
    deadline = time.time() + 5
    while own_processes() and time.time() < deadline: time.sleep(0.05)
    return not own_processes()


def train_with_two(folder):
    "In a process of its own, to be killed"
    torch.set_num_threads(1)
    train.train(EXPERIMENT, data.load('shapes', n_train=64, n_val=16), folder, gpus=0, processes=2)


@pytest.fixture
def folder(tmp_path):
    "Its name, which is in the command line of the processes, holds this process's id"
    path = tmp_path / f'runs-{os.getpid()}'
    path.mkdir()
    return path


needs_proc = pytest.mark.skipif(not Path('/proc/net/tcp').exists(), reason='looks at processes through /proc, which is not here')


@needs_proc
def test_two_processes_killed_and_resumed_have_the_loss_curve_of_one(folder, tmp_path, spec, capsys):
    "kill -9 of the caller in the second epoch: nothing goes on running, and the rest is trained as one process trains it"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['pisa.lab.train'])
    caller = context.Process(target=train_with_two, args=(folder,))
    caller.start()
    addresses = []
    def kill():
        addresses.extend(listening())
        caller.kill()
    when(lambda: list(folder.glob('*/checkpoints/epoch_1.pth')) or not caller.is_alive(), kill).join(120)
    caller.join(60)
    assert caller.exitcode == -9 and all_gone()
    assert addresses and set(addresses) <= {'0100007F', '0' * 24 + '01000000', '0000000000000000FFFF00000100007F'}  # 127.0.0.1, ::1
    path, = folder.iterdir()
    state = runs.last_checkpoint(path)
    assert not torch.equal(*(rng['torch'] for rng in state['rng']))  # chance differs between processes

    assert train.train(EXPERIMENT, spec, folder, gpus=0, processes=2) == path
    assert '/15' in capsys.readouterr().out  # steps: the progress of the first process came through
    one = train.train(EXPERIMENT, spec, tmp_path / 'one', gpus=0)
    record, alone = (read_json(p / 'run.json') for p in (path, one))
    assert record['id'] == alone['id'] and record['steps'] == alone['steps'] == 15
    assert record['resumed'] == 1 and record['machine']['processes'] == 2 and alone['machine']['processes'] == 1
    curves = [[json.loads(line) for line in (p / 'scalars.jsonl').read_text().splitlines()] for p in (path, one)]
    assert [line['step'] for line in curves[0]] == [10, 15]
    # The gradients are sums of the same numbers in another order, and the network passes on what is rounded otherwise: with two threads in place
    # of one, too, losses move in the fifth digit, and the weights by up to 0.5% of what the training changes them by (seen with AVX2; single
    # small tensors by 9%). What goes wrong with several processes (a sum for a mean, other images, one process alone) changes all by as much as
    # it is, and losses by percents.
    for ours, theirs in zip(*curves, strict=True): assert ours == pytest.approx(theirs, rel=1e-3)
    flat = lambda state: torch.cat([v.double().flatten() for v in state.values()])
    weights = [flat(torch.load(p / 'weights.pth', weights_only=True)) for p in (path, one)]
    assert (weights[0] - weights[1]).norm() < 0.1*(weights[1] - flat(state['model'])).norm()  # since the first epoch
    detections = [read_json(p / 'detections.json') for p in (path, one)]
    for images in ([image for image, _ in groupby(d, lambda d: d['image_id'])] for d in detections):
        assert images == sorted(set(images)) and len(images) > 4  # each once, in order; in some of the seven nothing is found


def test_error_of_the_process_that_failed_first(folder, tmp_path, spec):
    "An image is missing, so one process fails, and then the other, which waits for it"
    images = tmp_path / 'images'
    shutil.copytree(spec.train_images, images)
    first = read_json(spec.train_json)['images'][0]['file_name']
    (images / first).unlink()
    tiny = 'train_cfg.max_epochs=1 train_dataloader.dataset.indices=4 train_dataloader.batch_size=4'
    with pytest.raises(RuntimeError, match=rf'process [01] of 2 failed: FileNotFoundError: .*{re.escape(str(images / first))}') as e:
        train.train(experiments.experiment('retinanet', overrides=tiny), dataclasses.replace(spec, train_images=images), folder, gpus=0, processes=2)
    assert '\n' not in str(e.value) and not list(folder.glob('*/metrics.json'))
    logs = Path(re.search(r'The logs are in (.*)', str(e.value))[1])
    assert any('Traceback' in log.read_text() and first in log.read_text() for log in logs.glob('rank*.log'))
    assert all_gone()


def working(rank):
    "A process, as soon as it is there"
    return own_processes().get(rank)


@needs_proc
def test_process_ended_from_outside(folder, spec):
    "As the kernel does where memory runs out"
    when(lambda: working(1), lambda: os.kill(working(1), signal.SIGKILL))
    with pytest.raises(RuntimeError, match='process 1 of 2 was ended by SIGKILL') as e:
        train.train(EXPERIMENT, spec, folder, gpus=0, processes=2)
    assert '\n' not in str(e.value) and all_gone()


@needs_proc
def test_interrupt_ends_all(folder, spec):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background has it ignored
    when(lambda: working(1), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt): train.train(EXPERIMENT, spec, folder, gpus=0, processes=2)
    assert all_gone()
    path, = folder.iterdir()
    with runs.lock(path): pass  # free


def test_processes_that_cannot_share_the_batch(folder, spec):
    with pytest.raises(ValueError, match='3 processes cannot share a step of 4 images. Choose from: 1, 2, 4'):
        train.train(EXPERIMENT, spec, folder, gpus=0, processes=3)
    assert not list(folder.iterdir())


# ---- several machines: two callers that share nothing but a folder

TWO = SAME.replace('max_epochs=3', 'max_epochs=2')


def train_as_node(folder, node, overrides=TWO):
    torch.set_num_threads(1)
    os.environ |= {'GLOO_SOCKET_IFNAME': 'lo'}  # these two are on one machine
    exp = experiments.experiment('atss', 'isr', overrides=overrides)
    try: train.train(exp, data.load('shapes', n_train=64, n_val=16), folder, gpus=0, nodes=2, node=node)
    except Exception as e: (folder.parent / f'said{node}').write_text(str(e))


def two_machines(folder, *args):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['pisa.lab.train'])
    callers = [context.Process(target=train_as_node, args=(folder, node, *args)) for node in (1, 0)]
    for caller in callers: caller.start()
    return callers[::-1]


def test_two_machines_train_what_two_processes_train(folder, tmp_path, spec):
    callers = two_machines(folder)
    for caller in callers: caller.join(180)
    assert [c.exitcode for c in callers] == [0, 0] and not list(tmp_path.glob('said*'))
    path, = folder.iterdir()
    alone = train.train(experiments.experiment('atss', 'isr', overrides=TWO), spec, tmp_path / 'one machine', gpus=0, processes=2)
    for name in ('scalars.jsonl', 'metrics.json', 'detections.json'): assert (path / name).read_bytes() == (alone / name).read_bytes()
    assert read_json(path / 'run.json')['machine']['processes'] == 2


@needs_proc
def test_the_first_machine_says_what_failed_on_the_other(folder, tmp_path):
    callers = two_machines(folder)
    when(lambda: working(1), lambda: os.kill(working(1), signal.SIGKILL)).join()
    for caller in callers: caller.join(60)
    assert all_gone()
    for node in (0, 1): assert 'process 1 of 2 was ended by SIGKILL' in (tmp_path / f'said{node}').read_text()


@needs_proc
def test_the_other_machine_ends_with_the_first(folder, tmp_path):
    first, other = two_machines(folder, TWO.replace('max_epochs=2', 'max_epochs=40'))
    when(lambda: working(0) and working(1), first.kill).join()
    other.join(60)
    assert other.exitcode == 0 and (tmp_path / 'said1').exists() and all_gone()


def test_a_process_that_aborts_at_its_end_does_not_end_the_first(folder, spec, tmp_path, monkeypatch):
    "As libraries did under load, when they took themselves apart while the first process was still writing"
    (tmp_path / 'sitecustomize.py').write_text("import atexit, os, sys\nif sys.orig_argv[-1] == '1': atexit.register(os.abort)\n")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    tiny = 'train_cfg.max_epochs=1 train_dataloader.dataset.indices=4 train_dataloader.batch_size=4 val_dataloader.dataset.indices=4'
    path = train.train(experiments.experiment('ssd300', overrides=tiny), spec, folder, gpus=0, processes=2)
    assert runs.is_complete(path)


def test_too_few_images_for_a_process_are_refused_before_anything_starts(spec, tmp_path):
    "Table 6 ranks eight images together, all of a step at mini scale"
    exp = rows.row_experiment('table6/images8', scale='mini')
    with pytest.raises(ValueError, match='2 processes cannot share a step of 8 images, of which 8 are ranked together. Choose from: 1'): train.train(exp, spec, tmp_path, gpus=0, processes=2)
    assert not list(tmp_path.iterdir())


@needs_proc
def test_a_process_whose_parent_dies_ends_before_its_imports_are_done(tmp_path):
    "The caller is killed while a process that it started is importing; here that import lasts a minute"
    (tmp_path / 'pisa').mkdir()
    (tmp_path / 'pisa/__init__.py').write_text(f"import time; open({str(tmp_path / 'importing')!r}, 'w').close(); time.sleep(60)")
    start = f"""import os, subprocess, sys
p = subprocess.Popen([sys.executable, '-c', {processes.START!r}, '{os.getpid()}', 'plan', '0'])
print(p.pid, flush=True); p.wait()"""
    env = dict(os.environ, PYTHONPATH=str(tmp_path))
    with subprocess.Popen([sys.executable, '-c', start], env=env, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        child = int(parent.stdout.readline())
        when((tmp_path / 'importing').exists, parent.kill).join()
    assert (tmp_path / 'importing').exists()
    deadline = time.time() + 5
    while alive(child) and time.time() < deadline: time.sleep(0.05)
    if left := alive(child): os.kill(child, signal.SIGKILL)
    assert not left


def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False
