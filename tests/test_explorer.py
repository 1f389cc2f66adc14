"The explorer of 10_hlr: in Python, on a run's detections, and in JupyterLab with a browser"
import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pytest

pytest.importorskip('ipywidgets')
import torch
from pisa.hlr import iou_hlr
from pisa.lab import explorer
from pisa.lab.explorer import Explorer, Scene, label_places, run_scene
from pisa.lab.files import write_json

ROOT = Path(__file__).resolve().parents[1]


# an independent ranking: plain Python, straight from the text of the paper

def overlap(a, b):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def expected(scene, boxes, gamma=2., beta=0.):
    "For each box its object, IoU, local rank, IoU-HLR and weight; -1 and None where it overlaps nothing"
    iou = [[overlap(b, o) for o in scene.objects] for b in boxes]
    best = [max(row) for row in iou]
    own = [row.index(m) if m > 0 else -1 for row, m in zip(iou, best)]
    out = []
    local = [sum(own[j] == own[i] and (best[j], -j) > (best[i], -i) for j in range(len(boxes))) for i in range(len(boxes))]
    cls = [scene.labels[o] if o >= 0 else None for o in own]
    for i in range(len(boxes)):
        mine = [j for j in range(len(boxes)) if cls[j] == cls[i]]
        rank = sum((local[j], -best[j], j) < (local[i], -best[i], i) for j in mine)
        u = (len(mine) - rank) / len(mine)
        out.append((-1, 0, -1, -1, None) if own[i] < 0 else (own[i], best[i], local[i], rank, ((1 - beta) * u + beta)**gamma))
    return out


@pytest.fixture(scope='module')
def notebook():
    "What the code cells of 10_hlr's explorer, and those that they rest on, define"
    sources = [''.join(c['source']) for c in json.loads((ROOT / 'nbs/10_hlr.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    names = {'torch': torch, 'iou_hlr': iou_hlr, 'Scene': Scene}
    for start in ("names = ['dog'", 'def box_iou', 'def rank_weight'):
        source, = [s for s in sources if s.startswith(start)]
        exec(source, names)
    exec(re.search(r'^toy = .+$', '\n'.join(sources), re.M)[0], names)
    return SimpleNamespace(**names)


@pytest.fixture
def toy(notebook): return Explorer({'toy': notebook.toy}, notebook.measure)


def shown(e):
    "The table's rows as they are written, without what they were at first"
    rows = re.findall(r'<tr data-box="(\w+)"[^>]*>(.*?)</tr>', e.table.value)
    return {letter: [re.sub(r'<span.*?</span>|<[^>]+>', '', c).strip() for c in re.findall(r'<td.*?</td>', row)] for letter, row in rows}


def labels(e): return dict(re.findall(r'>([a-z]\d*) ([\d–]+)</text>', e.svg.value))


def written(e, scene, boxes, **how):
    "The rows that should be there"
    names = explorer.object_names(scene)
    number = lambda v, form: '–' if v in (None, -1) else format(v, form)
    return [[names[o] if o >= 0 else '–', f'{iou:.2f}', number(local, 'd'), number(rank, 'd'), number(weight, '.2f')]
            for o, iou, local, rank, weight in expected(scene, boxes, **how)]


def agrees(e, **how):
    rows = written(e, e.scene, e.boxes, **how)
    assert [shown(e)[l] for l in e.letters] == [[l, *row] for l, row in zip(e.letters, rows)]
    assert [labels(e)[l] for l in e.letters] == [row[3] for row in rows]


def test_shows_the_scene(toy):
    assert toy.letters == list('abcdefghi')
    agrees(toy)


def test_sliders_move_the_chosen_box(toy):
    toy.which_box.value = 'b'
    before = labels(toy)
    toy.place[0].value, toy.place[1].value = 1.1, 1.1  # nearly where its object is
    toy.place[2].value = 4.
    toy.place[3].value = 3.
    assert toy.boxes[1] == pytest.approx((1.1, 1.1, 5.1, 4.1))
    agrees(toy)
    assert (before['b'], labels(toy)['b']) == ('2', '0') and labels(toy)['d'] == before['d']


def test_gamma_and_beta(toy):
    toy.gamma.value, toy.beta.value = 1., .2
    agrees(toy, gamma=1., beta=.2)


def test_random_moves_agree(notebook):
    "Boxes anywhere, on no object, equal ones, added and removed ones; the controls always show the state"
    rng = random.Random(0)
    e = Explorer({'toy': notebook.toy}, notebook.measure)
    for step in range(60):
        kind = rng.randrange(8)
        if kind == 0: e.add.click()
        elif kind == 1 and len(e.boxes) > 1: e.remove.click()
        elif kind == 2: e.which_box.value = rng.choice(e.letters)
        elif kind == 3:
            at = [rng.uniform(0, e.side) for _ in range(4)]
            e.mouse.value = ' '.join(map(str, [step, *at]))
        else:
            s = rng.choice(e.place)
            s.value = rng.uniform(s.min, s.max)
        agrees(e)
        x1, y1, x2, y2 = e.boxes[e.chosen]
        assert [s.value for s in e.place] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=e.least)
        assert e.which_box.value == e.letters[e.chosen] and len(set(e.letters)) == len(e.boxes)
        f = e.scene.frame
        assert f[0] - 1e-9 <= x1 < x2 <= f[2] + 1e-9 and f[1] - 1e-9 <= y1 < y2 <= f[3] + 1e-9
    e.reset.click()
    assert e.boxes == [tuple(b) for b in notebook.toy.boxes] and '→' not in e.table.value


def test_all_boxes_can_be_removed(toy):
    for _ in range(9): toy.remove.click()
    assert toy.boxes == [] and toy.remove.disabled and shown(toy) == {}
    toy.add.click()
    agrees(toy)


def test_what_a_slider_answers_moves_nothing(notebook):
    "In the browser a slider answers the value that it is set to with its nearest step"
    e = Explorer({'a': Scene([(20, 20, 70, 70)], [0], ['cell'], [(22.123, 22.2, 72.456, 72.1)], (0, 0, 160, 120))}, notebook.measure)
    for s in e.place: s.value = s.value + 1e-9
    assert e.boxes == [(22.123, 22.2, 72.456, 72.1)]
    e.place[0].value += e.least
    assert e.boxes[0] == pytest.approx((22.8, 22.2, 73.133, 72.1))
    e.place[0].value = told = 23.399999999999995  # the browser's 23.4; corrected, the slider would jump back from where it is by then
    assert e.place[0].value == told and e.boxes[0][0] == pytest.approx(23.4)


def test_what_has_changed_is_shown_with_what_it_was(toy):
    toy.which_box.value = 'a'
    toy.place[0].value = 9.  # onto the bird
    row, = re.findall(r'<tr data-box="a".*?</tr>', toy.table.value)
    assert re.search(r'dog 1 →</span> <b>bird</b>', row)
    row, = re.findall(r'<tr data-box="b".*?</tr>', toy.table.value)  # is the best of its object now
    assert re.search(r'1 →</span> <b>0</b>', row)


def test_what_the_notebook_says_to_try(toy):
    place = lambda letter, box: (setattr(toy.which_box, 'value', letter), [setattr(toy.place[k], 'value', v) for k, v in enumerate(box)])
    order = lambda: [l for l in sorted('abcghi', key=lambda l: int(shown(toy)[l][4]))]
    assert order() == list('ahbgci')
    place('b', (1, 1, 4, 3.1))
    assert order() == list('bhagci')
    place('b', (2.4, 1, 4, 3))  # worse than g (0.50)
    assert 0.42 < float(shown(toy)['b'][2]) < 0.5 and order() == list('ahgbci')
    place('b', (3, 1, 4, 3))  # and than c (0.42)
    assert order() == list('ahgcib')
    toy.reset.click()
    before = shown(toy)
    toy.which_box.value = 'f'
    toy.add.click()
    assert {l for l in before if shown(toy)[l][5] != before[l][5]} == {'d', 'e'}


def test_the_still_picture_is_that_of_the_explorer(toy):
    toy.place[0].value = 3.
    still = toy.still()
    assert re.findall('<(?:rect|text).*?>', still) == re.findall('<(?:rect|text).*?>', toy.svg.value) and toy.table.value in still
    assert 'onpointerdown' not in still and 'onpointerdown' in toy.svg.value


def test_labels_do_not_cover_each_other_where_there_is_room():
    boxes = [(50 + i, 50 + i, 150 + i, 150 + i) for i in range(6)]
    places = label_places(boxes, [40] * 6, 19, [], (300, 300))
    for i, (x, y) in enumerate(places):
        x1, y1, x2, y2 = boxes[i]
        assert x in (x1, x2) or y in (y1, y2)  # on its own outline
        for u, v in places[:i]: assert abs(x - u) >= 40 or abs(y - v) >= 19


@pytest.fixture(scope='module')
def spec():
    pytest.importorskip('mmdet')
    from pisa.lab import data
    return data.load('shapes', n_train=64, n_val=16)


@pytest.fixture
def run(spec, tmp_path):
    "A record and detections: each object of each image twice, with noise, and a box anywhere; scores at random"
    from pisa.lab.show import load_samples
    rng = random.Random(0)
    detections = []
    for i, s in enumerate(load_samples(spec, 'val', 16)):
        for x1, y1, x2, y2 in [*s.boxes.tolist(), *s.boxes.tolist(), (3., 4., 20., 30.)]:
            x, y = x1 + rng.uniform(-9, 9), y1 + rng.uniform(-9, 9)
            detections.append(dict(image_id=i + 1, category_id=rng.randint(1, 8), bbox=[x, y, x2 - x1, y2 - y1], score=rng.random()))
    record = dict(id='a-run', dataset='shapes', data=dict(name='shapes', fingerprint=spec.fingerprint, n_train=64, n_val=16, note=spec.note))
    write_json(tmp_path / 'a-run/run.json', record)
    write_json(tmp_path / 'a-run/detections.json', detections)
    return tmp_path, detections


def test_a_run(run, spec, notebook):
    from pisa.lab.show import load_samples
    folder, detections = run
    assert explorer.runs_with_detections(folder) == ['a-run']
    e = Explorer({'toy': notebook.toy, 'a run': partial(run_scene, 'a-run', n=6, runs=folder)}, notebook.measure)
    assert e.which_image.disabled
    e.which_scene.value = 'a run'
    assert not e.which_image.disabled
    for i, s in enumerate(load_samples(spec, 'val', 16)):
        e.which_image.value = i
        assert e.background.value == s.file.read_bytes() and [*map(list, e.scene.objects)] == s.boxes.tolist()
        best = sorted((d for d in detections if d['image_id'] == i + 1), key=lambda d: -d['score'])[:6]
        boxes = [[max(x, 0), max(y, 0), min(x + w, 128), min(y + h, 128)] for x, y, w, h in (d['bbox'] for d in best)]
        assert [*map(list, e.boxes)] == boxes
        agrees(e)
    assert run_scene('a-run', 3, n=6, runs=folder, spec=spec) == run_scene('a-run', 3, n=6, runs=folder)


def test_errors_are_one_line(run, notebook, monkeypatch, tmp_path):
    folder, _ = run
    e = Explorer({'a run': partial(run_scene, 'a-run', runs=folder)}, notebook.measure)
    before = e.svg.value
    for where, value, says in (('image', 16, 'has validation images 0 to 15'), ('file', None, 'records have none: train the run'), ('cache', None, "pisa.lab.data.load('shapes', n_train=64, n_val=16) renders them")):
        if where == 'image': e.which_image.value = value
        if where == 'file':
            (folder / 'a-run/detections.json').rename(folder / 'kept')
            e.which_image.value = 3
            (folder / 'kept').rename(folder / 'a-run/detections.json')
        if where == 'cache':
            monkeypatch.setenv('PISA_DATA', str(tmp_path / 'none'))
            e.which_image.value = 4
        message = re.sub('<[^>]+>', '', e.message.value).replace('&#x27;', "'")
        assert says in message and '\n' not in message
        assert e.svg.value == before  # the picture is still there
    monkeypatch.undo()
    e.which_image.value = 5
    assert e.message.value == '' and e.svg.value != before
    assert base64.b64encode(e.background.value).decode() in e.still()  # below the boxes


def test_a_scene_that_fails_first_leaves_dead_controls(notebook):
    e = Explorer({'none': partial(run_scene, 'no-such-run'), 'toy': notebook.toy}, notebook.measure)
    assert 'is not there' in e.message.value
    e.add.click()
    e.gamma.value = 1.
    e.which_scene.value = 'toy'
    assert e.message.value == ''
    agrees(e, gamma=1.)


# ---- in a browser

OBJECTS = [(20., 20., 70., 70.), (90., 10., 150., 60.), (60., 80., 100., 110.)]
DETECTIONS = [(22., 22., 72., 72.), (30., 15., 80., 72.), (88., 14., 150., 66.), (95., 0., 155., 50.), (62., 76., 99., 108.), (50., 84., 95., 115.)]
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def wait(what, seconds, why):
    "The first true value of `what()`"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what(): return value
        time.sleep(.1)
    pytest.fail(f'{why} within {seconds} s')


@contextlib.contextmanager
def process(*command, **options):
    p = subprocess.Popen(command, start_new_session=True, **options)
    try: yield p
    finally:
        p.terminate()  # JupyterLab ends its kernels
        try: p.wait(15)
        except subprocess.TimeoutExpired: pass
        with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
        p.wait()


class Page:
    "A page of Chromium through the DevTools protocol"
    def __init__(self, port):
        websocket = pytest.importorskip('websocket')
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json'))
        self.socket, self.number = websocket.create_connection(next(p['webSocketDebuggerUrl'] for p in pages if p['type'] == 'page'), suppress_origin=True, timeout=60), 0

    def call(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps(dict(id=self.number, method=method, params=params)))
        while (answer := json.loads(self.socket.recv())).get('id') != self.number: pass
        assert 'error' not in answer, answer
        return answer['result']

    def js(self, expression):
        result = self.call('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def mouse(self, kind, x, y, buttons=0): self.call('Input.dispatchMouseEvent', type=f'mouse{kind}', x=x, y=y, button='left' if kind != 'Moved' else 'none', buttons=buttons, clickCount=int(kind != 'Moved'))

    def key(self, key, code):
        for kind in ('keyDown', 'keyUp'): self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, file): Path(file).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))


def make_run(folder):
    "A run of one image: its record and detections, and what it was tested on"
    from PIL import Image
    name, corners = 'a-run', lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]
    write_json(folder / 'runs' / name / 'run.json', dict(id=name, dataset='shapes', data=dict(name='shapes', fingerprint='mine', n_train=1, n_val=1, note='one image')))
    write_json(folder / 'runs' / name / 'detections.json', [dict(image_id=1, category_id=1, bbox=corners(b), score=.9 - i / 10) for i, b in enumerate(DETECTIONS)])
    data = folder / 'data/shapes/one'
    write_json(data / 'about.json', dict(fingerprint='mine'))
    write_json(data / 'val.json', dict(images=[dict(id=1, file_name='1.png', width=160, height=120)], categories=[dict(id=1, name='cell'), dict(id=2, name='platelet')],
        annotations=[dict(image_id=1, category_id=c, bbox=corners(b)) for b, c in zip(OBJECTS, (1, 1, 2))]))
    (data / 'val').mkdir()
    image = Image.new('RGB', (160, 120), (90, 120, 100))
    for box in OBJECTS: image.paste((200, 170, 120), tuple(map(int, box)))
    image.save(data / 'val/1.png')


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "10_hlr open in JupyterLab, all cells run, the explorer in view"
    if not CHROMIUM: pytest.skip('no Chromium here')
    pytest.importorskip('jupyterlab')
    tmp = tmp_path_factory.mktemp('lab')
    (tmp / 'nbs').mkdir()
    shutil.copy(ROOT / 'nbs/10_hlr.ipynb', tmp / 'nbs')
    write_json(tmp / 'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings', {'fetchNews': 'false', 'checkForUpdates': False})
    make_run(tmp)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PISA_ROOT=str(tmp), PISA_DATA=str(tmp / 'data'), HOME=str(tmp),
               **{f'JUPYTER_{d}_DIR': str(tmp / d.lower()) for d in ('CONFIG', 'DATA', 'RUNTIME')}, IPYTHONDIR=str(tmp / 'ipython'), MPLCONFIGDIR=str(tmp / 'mpl'))
    env.pop('MPLBACKEND', None)
    lab = (sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=explorer',
           f'--ServerApp.root_dir={tmp / "nbs"}', '--LabApp.expose_app_in_browser=True', f'--LabApp.user_settings_dir={tmp / "settings"}', f'--LabApp.workspaces_dir={tmp / "workspaces"}',
           *(['--allow-root'] if os.geteuid() == 0 else []))
    browser = (CHROMIUM, '--headless=new', *(['--no-sandbox'] if os.geteuid() == 0 else []), '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking', '--disable-component-update',
               '--disable-sync', '--remote-debugging-port=0', f'--user-data-dir={tmp / "browser"}', '--window-size=1500,1000', 'about:blank')
    log = (tmp / 'log').open('w')
    with process(*lab, env=env, stdout=log, stderr=log), process(*browser, env=env, stdout=log, stderr=log):
        url = f'http://127.0.0.1:{port}'
        def answers():
            with contextlib.suppress(OSError): return urllib.request.urlopen(f'{url}/api?token=explorer').status == 200
        wait(answers, 60, 'JupyterLab did not answer')
        active = tmp / 'browser/DevToolsActivePort'
        page = Page(wait(lambda: active.exists() and active.read_text().split('\n')[0], 60, 'Chromium did not start'))
        page.call('Page.navigate', url=f'{url}/lab/tree/10_hlr.ipynb?token=explorer')
        page.call('Emulation.setFocusEmulationEnabled', enabled=True)  # a page in the background has no current notebook
        try:
            wait(lambda: page.js("""(() => {try {
                window.panel = [...jupyterapp.shell.widgets('main')].find(w => w.context?.path == '10_hlr.ipynb');
                return panel.sessionContext.session.kernel.status == 'idle'} catch {return false}})()"""), 90, 'the notebook did not open')
            page.js("jupyterapp.shell.activateById(panel.id)")
            wait(lambda: page.js("jupyterapp.shell.currentWidget == panel"), 10, 'the notebook was not activated')
            page.js("void jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.ran = true)")
            wait(lambda: page.js('window.ran'), 90, 'the cells did not all run')  # then JupyterLab moves the focus no more
            page.js("panel.content.scrollToItem(panel.content.widgets.findIndex(c => c.model.sharedModel.source.includes('explorer = Explorer(')), 'start')")
            wait(lambda: page.js("document.querySelectorAll('.pisa-explorer tr[data-box]').length == 9"), 60, 'the explorer did not appear')
            assert page.js("panel.content.widgets.every(c => !(c.model.outputs?.toJSON() || []).some(o => o.output_type == 'error'))")
            page.js("document.querySelector('.pisa-explorer').scrollIntoView({block: 'start'})")
        except BaseException:
            page.screenshot(tmp / 'failed.png')
            print(f'the page: {tmp / "failed.png"}')
            raise
        yield page


@pytest.fixture
def screenshot(page, tmp_path):
    yield
    page.screenshot(tmp_path / 'page.png')
    print(f'the page as it was: {tmp_path / "page.png"}')  # pytest shows this if the test fails


def read(page):
    "The ranks on the picture, and those in the table"
    picture = page.js("[...document.querySelectorAll('.pisa-explorer svg text')].map(t => t.textContent)")
    table = page.js("[...document.querySelectorAll('.pisa-explorer tr[data-box]')].map(r => [r.dataset.box, r.cells[4].textContent.split(' ').pop()])")
    return dict(t.split(' ') for t in picture if re.fullmatch(r'[a-z]\d* [\d–]+', t)), dict(table)


def ranks(scene, boxes): return dict(zip('abcdefghi', (str(row[3]) for row in expected(scene, boxes))))


def center(page, selector):
    return page.js(f"(() => {{const r = document.querySelector({selector!r}).getBoundingClientRect(); return [r.x + r.width/2, r.y + r.height/2]}})()")


def press(page, slider, steps):
    "Focus a slider and press the right arrow key"
    page.js(f"document.querySelector('.pisa-{slider} .noUi-handle').focus()")
    for _ in range(steps): page.key('ArrowRight', 39)
    assert page.js(f"document.activeElement == document.querySelector('.pisa-{slider} .noUi-handle')")


def test_keys_move_a_box(page, notebook, screenshot):
    "The left side of box a, with real keys, step by step: until its rank is another one"
    boxes = [list(b) for b in notebook.toy.boxes]
    assert read(page) == (ranks(notebook.toy, boxes),) * 2
    width = boxes[0][2] - boxes[0][0]
    press(page, 'left', 20)
    def left(): return float(page.js("document.querySelector('.pisa-left .widget-readout').textContent"))
    boxes[0][0], boxes[0][2] = boxes[0][0] + 1, boxes[0][0] + 1 + width
    assert wait(lambda: left() == pytest.approx(boxes[0][0]), 10, 'the slider did not move')
    now = ranks(notebook.toy, boxes)
    assert now['a'] != ranks(notebook.toy, notebook.toy.boxes)['a']
    wait(lambda: read(page) == (now, now), 10, f'the ranks did not become {now} but {read(page)}')


def test_mouse_drags_a_box(page, notebook, screenshot):
    "From the lower side of box h to the lower right: its object goes to another box"
    page.js("[...document.querySelectorAll('.pisa-explorer button')].find(b => b.textContent.includes('reset')).click()")
    boxes = [list(b) for b in notebook.toy.boxes]
    wait(lambda: read(page)[1] == ranks(notebook.toy, boxes), 10, 'nothing was reset')
    x, y, w = page.js("(() => {const r = document.querySelector('.pisa-explorer svg').getBoundingClientRect(); return [r.x, r.y, r.width]})()")
    frame = notebook.toy.frame
    scale = w / (frame[2] - frame[0])
    x, y = x + ((boxes[7][0] * .4 + boxes[7][2] * .6) - frame[0]) * scale, y + (boxes[7][3] - frame[1]) * scale
    page.mouse('Moved', x, y)
    page.mouse('Pressed', x, y, 1)
    for i in range(1, 11): page.mouse('Moved', x + 5 * i, y + i, 1)
    page.mouse('Released', x + 50, y + 10)
    boxes[7] = [v + d / scale for v, d in zip(boxes[7], (50, 10, 50, 10))]
    now = ranks(notebook.toy, boxes)
    assert now['h'] != ranks(notebook.toy, notebook.toy.boxes)['h']
    wait(lambda: read(page) == (now, now), 10, f'the ranks did not become {now} but {read(page)}')
    page.mouse('Moved', x + 90, y)  # with no button pressed nothing follows
    time.sleep(.5)
    assert read(page) == (now, now)


def test_a_click_on_a_row_chooses_its_box(page, screenshot):
    for letter in 'ce':
        x, y = center(page, f'.pisa-explorer tr[data-box={letter}]')
        for kind in ('Pressed', 'Released'): page.mouse(kind, x, y, 1)
        wait(lambda: page.js("[...document.querySelectorAll('.pisa-explorer tr[style*=background]')].map(r => r.dataset.box)") == [letter], 10, 'the row was not marked')
        assert page.js("document.querySelector('.pisa-box select').value") == letter


def test_an_image_of_a_run(page, notebook, screenshot):
    "The run in the list, its image below the boxes, and a key that changes a rank"
    page.js("""(() => {const s = document.querySelector('.pisa-explorer select');
        s.selectedIndex = [...s.options].findIndex(o => o.textContent == 'a-run'); s.dispatchEvent(new Event('change', {bubbles: true}))})()""")
    scene = Scene(OBJECTS, [0, 0, 1], ['cell', 'platelet'], DETECTIONS, (0, 0, 160, 120))
    boxes = [list(b) for b in DETECTIONS]
    wait(lambda: read(page) == (ranks(scene, boxes),) * 2, 10, 'the run was not shown')
    image, svg = page.js("[...document.querySelectorAll('.pisa-explorer img, .pisa-explorer svg')].map(e => {const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]})")
    assert image == pytest.approx(svg, abs=1) and page.js("document.querySelector('.pisa-explorer img').naturalWidth") == 160
    time.sleep(1)  # for what the sliders may answer
    assert '→' not in page.js("document.querySelector('.pisa-explorer table').textContent")  # nothing has moved
    press(page, 'left', 40)
    moved = [(46.2, 22., 96.2, 72.), *boxes[1:]]  # from the step nearest to 22 px, 22.2, by 40 steps of 0.6 px
    assert ranks(scene, moved)['a'] != ranks(scene, boxes)['a']
    was, now = (f'{overlap(b, OBJECTS[0]):.2f}' for b in (boxes[0], moved[0]))
    wait(lambda: page.js("document.querySelector('.pisa-explorer tr[data-box=a]').cells[2].textContent") == f'{was} → {now}', 10, 'the IoU did not change')
    assert read(page) == (ranks(scene, moved),) * 2


def test_the_still_picture_is_shown_where_the_explorer_is_not(page, screenshot):
    height = lambda: page.js("document.querySelector('.pisa-still').getBoundingClientRect().height")
    assert height() == 0
    page.js("(window.shown = document.querySelector('.pisa-explorer')).classList.remove('pisa-explorer')")
    try: assert height() > 300
    finally: page.js("shown.classList.add('pisa-explorer')")


@pytest.mark.parametrize('width', [1500, 1000])
def test_nothing_is_cut_off(page, screenshot, width):
    "Side by side where there is room, below each other where there is not, and all of it within the cell's output"
    page.call('Emulation.setDeviceMetricsOverride', width=width, height=1000, deviceScaleFactor=1, mobile=False)
    def places():
        return page.js("""['.jp-OutputArea-output:has(.pisa-explorer)', '.pisa-explorer svg', '.pisa-explorer table'].map(s => {
            const r = document.querySelector(s).getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]})""")
    def fits():
        whole, svg, table = places()
        beside, below = svg[2] < table[0], svg[3] < table[1]
        return (beside if width == 1500 else below) and whole[0] <= svg[0] and max(svg[2], table[2]) <= whole[2] and max(svg[3], table[3]) <= whole[3]
    wait(fits, 10, 'the explorer does not fit')
