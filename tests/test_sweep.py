"Sweeps: on this machine, and on a real Slurm where there is one"
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest

pytest.importorskip('mmdet')
import pisa
import submitit
from pisa.lab import data, processes, rows, runs, sweep
from pisa.lab.files import read_json, write_json
from notebooks import ENV, ROOT, papermill

TINY = 'train_cfg.max_epochs=1 train_dataloader.dataset.indices=16 train_dataloader.batch_size=4 val_dataloader.dataset.indices=8'
LONGER = TINY.replace('max_epochs=1', 'max_epochs=40')


def plan(spec, rows, seeds=(1,), overrides=TINY, **words):
    "In float32, which no processor is slow at"
    return sweep.list_tasks(rows, seeds, specs={'shapes': spec}, overrides=overrides, precision='float32', **words)


def wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, 'it did not happen in time'
        time.sleep(0.2)


def test_the_same_training_is_planned_once(spec):
    rows = ['table3/C-R', 'table4/isr-carl', 'table1/faster_rcnn-r50-pisa', 'table3/R-R']
    assert [t.row for t in plan(spec, rows, (1, 2))] == ['table3/C-R', 'table3/R-R'] * 2


def train_table(folder, table, overrides, code=0):
    p = papermill('sweep', folder / 'out.ipynb', table=table, seeds=1, jobs=2, overrides=overrides, runs_dir=folder / 'runs')
    assert p.returncode == code, p.stderr[-2000:]
    return p.stdout + p.stderr


def test_the_notebook_trains_a_row(tmp_path):
    assert '1 of 1 done' in train_table(tmp_path, 'table4/isr', TINY)
    table = runs.load(tmp_path / 'runs')
    assert table.method.tolist() == ['isr'] and table.machine_threads.tolist() == [1]


def test_the_notebook_leaves_what_is_done_and_shows_what_failed(tmp_path):
    "Of two rows one is there already, with a metric that nobody measured; the other cannot work"
    bad = TINY + ' optim_wrapper.optimizer.lr=1e30 optim_wrapper.clip_grad.max_norm=1e30'
    spec = data.load('shapes')
    there, missing = sweep.list_tasks(rows.row_names('text'), [101], overrides=bad, specs={'shapes': spec})
    path = runs.folder(there.id, tmp_path / 'runs')
    write_json(path / 'run.json', runs.describe(there.exp, spec) | {'seconds': 60., 'steps': 4})
    write_json(path / 'metrics.json', {'AP': 12.3})
    log = train_table(tmp_path, 'text', bad, code=1)
    assert '1 of 2 trainings are missing' in log and '2 trainings, 1 of them done' in log and '1 of 2 done, 1 failed' in log
    assert f'{missing.row}, seed 101: failed. FloatingPointError: step ' in log
    assert read_json(path / 'metrics.json') == {'AP': 12.3} and not (path / 'job.log').exists()


def test_records_are_trained_unless_they_are_to_be_reused(spec, tmp_path):
    one, other = plan(spec, ['table4/isr', 'table4/carl'])
    path = runs.folder(one.id, tmp_path / 'records')
    write_json(path / 'run.json', runs.describe(one.exp, spec) | {'seconds': 60., 'steps': 4})
    write_json(path / 'metrics.json', {'AP': 99.})
    table = sweep.sweep([one, other], 2, tmp_path, poll=0.2, reuse=True)
    assert table.state.tolist() == ['done', 'done'] and table.why.tolist() == ['a record', ''] and table.AP[0] == 99
    assert runs.load(tmp_path).set_index('id').source.to_dict() == {one.id: 'record', other.id: 'own'}
    table = sweep.sweep([one, other], 2, tmp_path, poll=0.2)
    assert table.state.tolist() == ['done', 'done'] and table.AP[0] < 99
    assert runs.load(tmp_path).source.tolist() == ['own', 'own'] and runs.read_metrics(path) == {'AP': 99.}


def test_a_killed_job_does_not_stop_the_others(spec, tmp_path):
    tasks = plan(spec, ['table4/baseline'], overrides=LONGER) + plan(spec, ['table4/isr'])
    killed = []
    def watch(table, line):
        holder = runs.held(runs.folder(tasks[0].id, tmp_path))
        if holder and not killed:
            killed.append(holder)
            os.kill(int(holder.split()[1]), signal.SIGKILL)
    table = sweep.sweep(tasks, 2, tmp_path, watch=watch, poll=0.2)
    assert killed and table.state.tolist() == ['failed', 'done'] and 'without an error message' in table.why[0]


def two_jobs_of_a_sweep(folder):
    "A sweep in a process of its own, and the ids of its two jobs, which have begun to train"
    code = f"""
import signal, sys; sys.path.insert(0, {str(ROOT)!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background has it ignored
from pisa.lab import data, sweep
tasks = sweep.list_tasks(['table4/baseline', 'table4/isr'], [1], specs={{'shapes': data.load('shapes', n_train=64, n_val=16)}}, overrides={LONGER!r}, precision='float32')
sweep.sweep(tasks, 2, {str(folder)!r}, poll=0.2)"""
    p = subprocess.Popen([sys.executable, '-c', code], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    locks = lambda: [f for f in folder.glob('*/.lock') if (f.parent / 'scalars.jsonl').exists()]
    wait_for(lambda: len(locks()) == 2)
    return p, [int(f.read_text().split()[1]) for f in locks()]


def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
    except OSError: return False


def test_an_interrupt_ends_the_jobs(spec, tmp_path):
    p, pids = two_jobs_of_a_sweep(tmp_path)
    p.send_signal(signal.SIGINT)
    p.wait(30)
    wait_for(lambda: not any(map(alive, pids)), 30)


def test_jobs_end_with_a_sweep_that_is_killed(spec, tmp_path):
    p, pids = two_jobs_of_a_sweep(tmp_path)
    p.kill()
    p.wait()
    wait_for(lambda: not any(map(alive, pids)), 30)


def test_a_run_that_another_process_has_is_waited_for(spec, tmp_path):
    "It is shown as being elsewhere; the other leaves it unfinished, and the sweep takes it up"
    task, = plan(spec, ['table4/isr'])
    path, seen = runs.folder(task.id, tmp_path), []
    path.mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(runs.lock(path))
        def watch(table, line):
            seen.append((table.state[0], table.why[0], line))
            stack.close()
        table = sweep.sweep([task], 1, tmp_path, watch=watch, poll=0.2)
    assert seen[0][0] == 'elsewhere' and seen[0][1].startswith(f'trained by process {os.getpid()} on ') and '1 elsewhere' in seen[0][2]
    assert table.state.tolist() == ['done'] and not (path / 'error.txt').exists()


def test_a_job_that_finds_another_process_at_its_run_is_not_a_failure(spec, tmp_path):
    "Here the other takes the run when the job is already on its way"
    task, = plan(spec, ['table4/isr'])
    path, log = runs.folder(task.id, tmp_path), runs.folder(task.id, tmp_path) / 'job.log'
    waits = lambda: log.exists() and f'is being trained by process {os.getpid()}' in log.read_text()
    lock = runs.lock(path)
    def other():
        wait_for(waits)
        lock.__exit__(None, None, None)
    def watch(table, line):
        if not thread.ident:
            lock.__enter__()
            thread.start()
    thread = threading.Thread(target=other)
    table = sweep.sweep([task], 1, tmp_path, watch=watch, poll=0.2)
    thread.join()
    assert waits() and table.state.tolist() == ['done']


def test_each_job_has_gpus_of_its_own(spec, tmp_path, monkeypatch):
    "Three GPUs are enough for one job of two, or for three of one"
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5,7')
    monkeypatch.setattr(submitit.LocalExecutor, 'submit', lambda self, *args: self.parameters['visible_gpus'])
    tasks = plan(spec, ['table4/baseline', 'table4/isr', 'table4/carl'])
    for gpus, slots in ((1, [[3], [5], [7]]), (2, [[3, 5]])):
        own = sweep.Local(tmp_path, None, gpus, 1)
        own.submit(tasks[:own.room()])
        assert [*own.jobs.values()] == slots and own.room() == 0
        own.jobs.popitem()
        own.submit(tasks[-1:])
        assert [*own.jobs.values()] == slots


def test_what_cannot_work_is_refused_before_any_job(spec, tmp_path):
    tasks = plan(spec, ['table4/baseline', 'table4/isr'])
    folder = tmp_path / 'runs'
    with pytest.raises(ValueError, match='gpus=64, but torch sees'): sweep.sweep(tasks, 1, folder, gpus=64)
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'no weights')
    tasks = plan(spec, ['table1/retinanet-r50-pisa'], pretrained=str(weights))
    with pytest.raises((ValueError, FileNotFoundError), match=str(weights)): sweep.sweep(tasks, 1, folder)
    assert not folder.exists()


# ---- Slurm

@pytest.fixture(scope='module')
def slurm():
    "A one-node cluster of our own"
    if not shutil.which('slurmctld'): pytest.skip('no Slurm here: tests/slurm.sh install')
    if os.getuid(): pytest.skip('tests/slurm.sh starts a Slurm as root only')
    folder = Path(tempfile.mkdtemp(prefix='slurm'))  # and not in pytest's: munged has a user of its own
    worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0')[2:])  # the tests below may be shared between processes
    p = subprocess.run([ROOT / 'tests/slurm.sh', 'start', folder], capture_output=True, text=True, env=os.environ | {'PORT': str(16817 + 2*worker)})
    if p.returncode:
        subprocess.run([ROOT / 'tests/slurm.sh', 'stop', folder])  # what did start
        pytest.skip(f'Slurm did not start on this machine: {(p.stdout + p.stderr).strip()[-300:]}')
    os.environ['SLURM_CONF'] = f'{folder}/slurm.conf'
    yield folder
    subprocess.run([ROOT / 'tests/slurm.sh', 'stop', folder])
    del os.environ['SLURM_CONF']
    shutil.rmtree(folder, ignore_errors=True)  # a job that outlives its cluster may still write there


def test_slurm_trains_a_sweep_of_four_with_one_preempted(slurm, spec, tmp_path, monkeypatch):
    "An urgent job takes both cores while two of the four are running; Slurm queues them again, and they go on from their checkpoints"
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    # Slurm takes seconds to begin a job and to end one: the first two are long enough to be in training all that time
    tasks = plan(spec, ['table4/baseline', 'table4/isr'], overrides=LONGER) + plan(spec, ['table4/carl', 'table4/isr-carl'])
    urgent = []
    def watch(table, line):
        ready = [t for t in tasks if (runs.folder(t.id, tmp_path) / 'checkpoints').is_dir() and any((runs.folder(t.id, tmp_path) / 'checkpoints').glob('*.pth'))]
        if ready and not urgent:
            out = subprocess.run(['sbatch', '--parsable', '-p', 'urgent', '--exclusive', '-o', str(tmp_path / 'urgent'), '--wrap', 'sleep 3'], capture_output=True, text=True)
            urgent.append(out.stdout.strip())
    table = sweep.sweep(tasks, 2, tmp_path, launcher='slurm', slurm=dict(partition='normal', time=10), watch=watch, poll=0.3)
    assert table.state.tolist() == ['done'] * 4, table.why.tolist()
    assert urgent
    assert max(read_json(runs.folder(t.id, tmp_path) / 'run.json')['resumed'] for t in tasks) >= 1


class Enough(Exception): pass


def until(condition):
    "A `watch` that leaves the sweep as soon as a condition of its table holds, and the tables that it was given"
    seen = []
    def watch(table, line):
        seen.append(table)
        if condition(table): raise Enough
    return watch, seen


def test_a_sweep_that_is_started_again_submits_only_what_slurm_does_not_have(slurm, spec, tmp_path, monkeypatch):
    "One of three is running, the others are queued behind it; the second sweep waits for the same jobs"
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    tasks = plan(spec, ['table4/baseline', 'table4/isr', 'table4/carl'], overrides=LONGER)
    go = lambda tasks, watch: sweep.sweep(tasks, 1, tmp_path, launcher='slurm', slurm=dict(partition='normal', time=10), watch=watch, poll=0.3)
    try:
        watch, _ = until(lambda table: 'running' in table.state.tolist())
        with pytest.raises(Enough): go(tasks[:2], watch)
        first = sweep.in_queue()
        assert len(first) == 2
        watch, seen = until(lambda table: sum(map(bool, table.why)) >= 2)
        with pytest.raises(Enough): go(tasks, watch)
        second = sweep.in_queue()
        assert len(second) == 3 and first.keys() < second.keys()  # the third, which is new, alone
        assert 'Slurm: JobArrayTaskLimit' in seen[-1].why.tolist()
        job = (runs.folder(tasks[0].id, tmp_path) / 'slurm.job').read_text()
        submitted = submitit.core.utils.DelayedSubmission.load(submitit.SlurmJob(tmp_path / '.submitit', job).paths.submitted_pickle)
        assert submitted._timeout_countdown > 100  # so often Slurm may end it at its time limit
    finally: subprocess.run(['scancel', '--me'])
    wait_for(lambda: not sweep.in_queue())


def test_of_two_sweeps_started_together_one_submits(slurm, spec, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    tasks = plan(spec, ['table4/baseline', 'table4/isr'], overrides=LONGER)
    two = [sweep.Slurm(tmp_path, 1, 0, 1, dict(partition='normal', time=10)) for _ in range(2)]
    try:
        with ThreadPoolExecutor() as pool: list(pool.map(lambda own: own.submit(tasks), two))
        assert len(sweep.in_queue()) == 2
        first, second = ({t: job.job_id for t, job in own.jobs.items()} for own in two)
        assert first == second
    finally: subprocess.run(['scancel', '--me'])
    wait_for(lambda: not sweep.in_queue())


@pytest.mark.parametrize('options,reason', [(dict(partition='nonsense', time=1), 'nvalid partition'), (dict(time='x'), 'nvalid --time')])
def test_what_slurm_refuses_is_said_in_one_line(slurm, spec, tmp_path, options, reason):
    tasks = plan(spec, ['table4/baseline', 'table4/isr'])
    with pytest.raises(ValueError, match=f'Slurm refuses: .*{reason}') as e: sweep.sweep(tasks, 1, tmp_path, launcher='slurm', slurm=options)
    assert '\n' not in str(e.value) and not [t.id for t in tasks if (tmp_path / t.id).exists()]


def test_why_a_job_waits_is_shown(slurm, spec, tmp_path):
    "There is one node, and two are asked for"
    watch, seen = until(lambda table: table.why[0])
    try:
        with pytest.raises(Enough):
            sweep.sweep(plan(spec, ['table4/isr']), 1, tmp_path, launcher='slurm', slurm=dict(partition='normal', time=1, nodes=2), watch=watch, poll=0.3)
        assert seen[-1].state[0] == 'waiting' and seen[-1].why[0] in ('Slurm: PartitionConfig', 'Slurm: PartitionNodeLimit')  # it names either
    finally: subprocess.run(['scancel', '--me'])


def test_without_slurm(spec, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch here: .* launcher='local'") as e:
        sweep.sweep(plan(spec, ['table4/isr']), 1, tmp_path / 'runs', launcher='slurm')
    assert '\n' not in str(e.value) and not (tmp_path / 'runs').exists()


def test_jobs_import_the_package_of_the_sweep(tmp_path, monkeypatch):
    "And not one that lies in the working folder"
    (tmp_path / 'pisa').mkdir()
    (tmp_path / 'pisa/__init__.py').write_text('')
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, '-c', 'import pisa; print(pisa.__file__)']
    where = lambda env: subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | env).stdout.strip()
    monkeypatch.delenv('PYTHONSAFEPATH', raising=False)
    assert where({}) == str(tmp_path / 'pisa/__init__.py')
    assert where(processes.same_package()) == pisa.__file__
