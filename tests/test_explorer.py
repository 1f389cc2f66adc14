"The explorer of 10_hlr: in Python, on a run's detections, and in JupyterLab with a browser"
import base64, contextlib, json, os, random, re, shutil, signal, socket, string, subprocess, sys, time, urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pytest

pytest.importorskip('anywidget')
import torch
from pisa.hlr import iou_hlr
from pisa.lab import explorer
from pisa.lab.explorer import Explorer, Scene, run_scene
from pisa.lab.files import data_dir, write_json

ROOT = Path(__file__).resolve().parents[1]


# an independent ranking: plain Python, straight from the text of the paper

def overlap(a, b):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def by_letter(boxes): return dict(zip(string.ascii_lowercase, map(list, boxes)))


def written(scene, boxes, gamma=2., beta=0.):
    "The rows that should be there, by letter: object, IoU, local rank, IoU-HLR and weight"
    names, every = explorer.object_names(scene), range(len(boxes))
    iou = [[overlap(b, o) for o in scene.objects] for b in boxes.values()]
    best = [max(row) for row in iou]
    own = [row.index(m) if m > 0 else -1 for row, m in zip(iou, best)]
    local = [sum(own[j] == own[i] and (best[j], -j) > (best[i], -i) for j in every) for i in every]
    cls, out = [scene.labels[o] if o >= 0 else None for o in own], {}
    for i, letter in enumerate(boxes):
        mine = [j for j in every if cls[j] == cls[i]]
        rank = sum((local[j], -best[j], j) < (local[i], -best[i], i) for j in mine)
        weight = ((1 - beta) * (len(mine) - rank) / len(mine) + beta)**gamma
        ranked = [names[own[i]], f'{best[i]:.2f}', f'{local[i]}', f'{rank}', f'{weight:.2f}']
        out[letter] = ['–', '0.00', '–', '–', '–'] if own[i] < 0 else ranked
    return out


def compared(start, now):
    "Rows in which a cell that is not as at first has both values"
    return {l: [b if a == b else f'{a} → {b}' for a, b in zip(start.get(l, row), row)] for l, row in now.items()}


@pytest.fixture(scope='module')
def notebook():
    "What the code cells of 10_hlr's explorer, and those that they rest on, define"
    cells = json.loads((ROOT / 'nbs/10_hlr.ipynb').read_text())['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    names = {'torch': torch, 'iou_hlr': iou_hlr, 'Scene': Scene}
    for start in ("names = ['dog'", 'def box_iou', 'def rank_weight'):
        source, = [s for s in sources if s.startswith(start)]
        exec(source, names)
    exec(re.search(r'^toy = .+$', '\n'.join(sources), re.M)[0], names)
    return SimpleNamespace(**names)


def shown(e): return {letter: [now for was, now in row['cells']] for letter, row in e.table.items()}


def agrees(e, **how):
    rows = written(e.scene, e.boxes, **how)
    assert shown(e) == rows and [r['words'] for r in e.table.values()] == [f'{l} {row[3]}' for l, row in rows.items()]


@pytest.fixture
def toy(notebook): return Explorer({'toy': notebook.toy}, notebook.measure)


def test_random_boxes_agree(toy, notebook):
    "Boxes anywhere, on no object, equal ones, added and removed ones"
    rng = random.Random(0)
    agrees(toy)
    for step in range(60):
        boxes, letter = dict(toy.boxes), rng.choice('abcdefghijklm')
        if boxes.pop(letter, None) is None or rng.random() < .8:
            x, y, w, h = (rng.uniform(0, 6) for _ in range(4))
            boxes[letter] = [x, y, x + w, y + h] if rng.random() < .9 else boxes['a' if 'a' in boxes else min(boxes)]
        toy.boxes, toy.gamma, toy.beta = boxes, rng.uniform(0, 4), rng.uniform(0, .95)
        agrees(toy, gamma=toy.gamma, beta=toy.beta)
    toy.resets += 1
    assert toy.boxes == by_letter(notebook.toy.boxes)
    assert all(was == now for row in toy.table.values() for was, now in row['cells'])


def test_what_the_notebook_says_to_try(toy):
    def order(**boxes):
        toy.boxes = {**toy.boxes, **boxes}
        return sorted('abcghi', key=lambda l: int(shown(toy)[l][3]))
    assert order() == list('ahbgci')
    assert order(b=[1, 1, 5, 4.1]) == list('bhagci')
    assert order(b=[2.4, 1, 6.4, 4]) == list('ahgbci')  # worse than g (0.50)
    assert 0.42 < float(shown(toy)['b'][1]) < 0.5
    assert order(b=[3, 1, 7, 4]) == list('ahgcib')  # and than c (0.42)
    toy.resets += 1
    before, f = shown(toy), toy.boxes['f']
    toy.boxes = toy.boxes | dict(j=[v + d for v, d in zip(f, (.4, .3, .4, .3))])
    assert {l for l in before if shown(toy)[l][4] != before[l][4]} == {'d', 'e'}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A record and detections: each object of each image twice, with noise, and a box anywhere; scores at random"
    pytest.importorskip('mmdet')
    from pisa.lab.data import load
    from pisa.lab.show import load_samples
    spec = load('shapes', n_train=64, n_val=16)
    rng, detections, folder = random.Random(0), [], tmp_path_factory.mktemp('root') / 'runs'
    for i, s in enumerate(load_samples(spec, 'val', 16)):
        for x1, y1, x2, y2 in [*s.boxes.tolist(), *s.boxes.tolist(), (3., 4., 20., 30.)]:
            box = [x1 + rng.uniform(-9, 9), y1 + rng.uniform(-9, 9), x2 - x1, y2 - y1]
            detections.append(dict(image_id=i + 1, category_id=rng.randint(1, 8), bbox=box, score=rng.random()))
    data = dict(name='shapes', fingerprint=spec.fingerprint, n_train=64, n_val=16, note=spec.note)
    write_json(folder / 'a-run/run.json', dict(id='a-run', dataset='shapes', data=data))
    write_json(folder / 'a-run/detections.json', detections)
    return folder, detections, spec


def test_a_run(run, notebook):
    from pisa.lab.show import load_samples
    folder, detections, spec = run
    assert explorer.runs_with_detections(folder) == ['a-run']
    e = Explorer({'toy': notebook.toy, 'a run': partial(run_scene, 'a-run', n=6, runs=folder)}, notebook.measure)
    assert e.numbered == {'toy': False, 'a run': True}
    e.shown = 'a run'
    for i, s in enumerate(load_samples(spec, 'val', 16)):
        e.image = i
        assert e.view['image'] == f'data:image/bmp;base64,{base64.b64encode((spec.val_images/f"{i:06}.bmp").read_bytes()).decode()}'
        assert [*map(list, e.scene.objects)] == s.boxes.tolist()
        best = sorted((d for d in detections if d['image_id'] == i + 1), key=lambda d: -d['score'])[:6]
        corners = [[max(x, 0), max(y, 0), min(x + w, 128), min(y + h, 128)] for x, y, w, h in (d['bbox'] for d in best)]
        assert e.boxes == by_letter(corners)
        agrees(e)
    assert run_scene('a-run', 3, n=6, runs=folder, spec=spec) == run_scene('a-run', 3, n=6, runs=folder)


def test_errors_are_one_line(run, notebook, monkeypatch, tmp_path):
    folder = run[0]
    e = Explorer({'a run': partial(run_scene, 'a-run', runs=folder)}, notebook.measure)
    before = e.get_state(['view', 'boxes', 'table'])
    def fails(image, says):
        e.image = image
        assert says in e.message and '\n' not in e.message
        assert e.get_state(['view', 'boxes', 'table']) == before  # the picture is still there
    fails(16, 'has validation images 0 to 15')
    (folder / 'a-run/detections.json').rename(folder / 'kept')
    fails(3, 'records have none: train the run')
    (folder / 'kept').rename(folder / 'a-run/detections.json')
    with monkeypatch.context() as m:
        m.setenv('PISA_DATA', str(tmp_path / 'none'))
        fails(4, "pisa.lab.data.load('shapes', n_train=64, n_val=16) renders them")
    e.image = 5
    assert e.message == '' and e.view != before['view']


# ---- in a browser

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
        url = next(p['webSocketDebuggerUrl'] for p in pages if p['type'] == 'page')
        self.socket, self.number = websocket.create_connection(url, suppress_origin=True, timeout=60), 0

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

    def mouse(self, kind, x, y, buttons=0):
        how = dict(button='none') if kind == 'Moved' else dict(button='left', clickCount=1)
        self.call('Input.dispatchMouseEvent', type=f'mouse{kind}', x=x, y=y, buttons=buttons, **how)

    def screenshot(self, file):
        Path(file).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))
        print(f'the page as it was: {file}')  # pytest shows this if the test fails

    def each(self, selector, js): # of the explorer
        return self.js(f"[...document.querySelectorAll('.pisa-explorer {selector}')].map(e => {js})")

    def place(self, selector):
        return self.each(selector, "['x', 'y', 'width', 'height'].map(k => e.getBoundingClientRect()[k])")[0]

    def chosen(self): return self.each('[name=box]', 'e.value')[0]
    def sliders(self): return [float(v) for v in self.each('output', 'e.value')]
    def table(self): return {l: row for l, *row in self.each('tr[data-box]', '[...e.cells].map(c => c.textContent)')}

    def enter(self, name, value, event='change'):
        self.each(f'[name={name}]', f"{{e.value = {value!r}; e.dispatchEvent(new Event('{event}'))}}")

    def middle(self, selector):
        self.each(selector, "e.scrollIntoView({block: 'nearest'})")
        x, y, w, h = self.place(selector)
        return x + w / 2, y + h / 2

    def click(self, selector):
        x, y = self.middle(selector)
        for kind in ('Pressed', 'Released'): self.mouse(kind, x, y, 1)

    def press(self, name, steps):
        "Focus a slider and press the right arrow key, or the left one"
        self.each(f'[name={name}]', 'e.focus()')
        key, code = ('ArrowRight', 39) if steps > 0 else ('ArrowLeft', 37)
        for kind in ('keyDown', 'keyUp') * abs(steps):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        assert self.js('document.activeElement.name') == name

    def drag(self, scene, point, by):
        "With the mouse, from a point of the scene by a distance of the scene"
        (left, top, w, _), (x1, y1, x2, _) = self.place('svg'), scene.frame
        scale = w / (x2 - x1)
        x, y, dx, dy = left + (point[0] - x1) * scale, top + (point[1] - y1) * scale, by[0] * scale, by[1] * scale
        self.mouse('Moved', x, y)
        self.mouse('Pressed', x, y, 1)
        for i in range(1, 11): self.mouse('Moved', x + dx * i / 10, y + dy * i / 10, 1)
        self.mouse('Released', x + dx, y + dy)
        self.mouse('Moved', x + dx + 40, y + dy)  # with no button pressed nothing follows

    def boxes(self, scene):
        "The boxes as they are drawn, in units of the scene"
        scale = self.place('svg')[2] / (scene.frame[2] - scene.frame[0])
        drawn = self.each('[data-sides="1111"][pointer-events=all]',
                          "[e.dataset.box, ...['x', 'y', 'width', 'height'].map(a => +e.getAttribute(a))]")
        return {letter: [round(v / scale + scene.frame[k % 2], 7) for k, v in enumerate((x, y, x + w, y + h))]
                for letter, x, y, w, h in sorted(drawn)}

    def agrees(self, scene, boxes, start=None, **how):
        "Table, labels and picture become those of the boxes"
        start = start or written(scene, by_letter(scene.boxes))
        now = written(scene, boxes, **how)
        wait(lambda: self.table() == compared(start, now), 10, f'the table did not become {compared(start, now)}')
        words, drawn = self.each('svg text', 'e.textContent'), self.boxes(scene)
        assert {f'{l} {row[3]}' for l, row in now.items()} <= {*words} and len(words) == len(now) + len(scene.objects)
        assert [*drawn] == sorted(boxes) and all(drawn[l] == pytest.approx(box, abs=1e-6) for l, box in boxes.items())


@pytest.fixture(scope='module')
def lab(run, tmp_path_factory):
    "10_hlr open in JupyterLab, all cells run, the explorer in view"
    if not CHROMIUM: pytest.skip('no Chromium here')
    pytest.importorskip('jupyterlab')
    tmp = tmp_path_factory.mktemp('lab')
    (tmp / 'nbs').mkdir()
    shutil.copy(ROOT / 'nbs/10_hlr.ipynb', tmp / 'nbs')
    write_json(tmp / 'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings',
               {'fetchNews': 'false', 'checkForUpdates': False})
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    own = 'HOME', 'IPYTHONDIR', 'MPLCONFIGDIR', *(f'JUPYTER_{d}_DIR' for d in ('CONFIG', 'DATA', 'RUNTIME'))
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PISA_ROOT=str(run[0].parent),
               PISA_DATA=str(data_dir())) | {d: str(tmp / d) for d in own}
    env.pop('MPLBACKEND', None)
    root = os.geteuid() == 0
    lab = (sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', f'--port={port}',
           '--ServerApp.port_retries=0', '--IdentityProvider.token=explorer', f'--ServerApp.root_dir={tmp / "nbs"}',
           '--LabApp.expose_app_in_browser=True', f'--LabApp.user_settings_dir={tmp / "settings"}',
           f'--LabApp.workspaces_dir={tmp / "workspaces"}', *['--allow-root']*root)
    no = 'gpu', 'dev-shm-usage', 'background-networking', 'component-update', 'sync'
    browser = (CHROMIUM, '--headless=new', *['--no-sandbox']*root, *(f'--disable-{part}' for part in no),
               '--no-first-run', f'--user-data-dir={tmp / "browser"}', '--remote-debugging-port=0', '--window-size=1500,1000')
    log = (tmp / 'log').open('w')
    with process(*lab, env=env, stdout=log, stderr=log), process(*browser, env=env, stdout=log, stderr=log):
        url = f'http://127.0.0.1:{port}'
        def answers():
            with contextlib.suppress(OSError): return urllib.request.urlopen(f'{url}/api?token=explorer').status == 200
        wait(answers, 60, 'JupyterLab did not answer')
        active = tmp / 'browser/DevToolsActivePort'
        page = Page(wait(lambda: active.exists() and active.read_text().split('\n')[0], 60, 'Chromium did not start'))
        page.call('Page.navigate', url=f'{url}/lab/tree/10_hlr.ipynb?token=explorer')
        page.call('Emulation.setFocusEmulationEnabled', enabled=True)  # else no notebook is the current one
        try: run_all(page)
        except BaseException:
            page.screenshot(tmp / 'failed.png')
            raise
        yield page


def run_all(page):
    "Run all cells of the notebook, and scroll to the explorer"
    panel = "window.panel = [...jupyterapp.shell.widgets('main')].find(w => w.context?.path == '10_hlr.ipynb')"
    idle = f"window.jupyterapp && ({panel})?.sessionContext.session?.kernel?.status == 'idle'"
    wait(lambda: page.js(idle), 90, 'the notebook did not open')
    page.js('jupyterapp.shell.activateById(panel.id)')
    wait(lambda: page.js('jupyterapp.shell.currentWidget == panel'), 10, 'the notebook was not activated')
    page.js('void panel.sessionContext.session.kernel.info.then(() => window.answered = true)')
    wait(lambda: page.js('window.answered'), 60, 'the kernel did not answer')  # else cells may wait for ever
    page.js("void jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.ran = true)")
    wait(lambda: page.js('window.ran'), 90, 'the cells did not all run')  # then JupyterLab moves the focus no more
    page.js("""panel.content.scrollToItem(panel.content.widgets.findIndex(c =>
        c.model.sharedModel.source.includes('explorer = Explorer(')), 'start')""")
    wait(lambda: len(page.each('tr[data-box]', '1')) == 9, 60, 'the explorer did not appear')
    outputs = page.js('panel.content.widgets.flatMap(c => c.model.outputs?.toJSON() || []).map(o => o.output_type)')
    assert outputs and 'error' not in outputs
    page.js("document.querySelector('.pisa-explorer').scrollIntoView({block: 'start'})")


@pytest.fixture
def page(lab, notebook, tmp_path):
    "The page, with the toy scene as it is at first"
    lab.enter('shown', 'two dogs and a bird')
    for name, value in ('gamma', 2), ('beta', 0): lab.enter(name, value, 'input')
    lab.each('[name=reset]', 'e.click()')
    lab.agrees(notebook.toy, by_letter(notebook.toy.boxes))
    yield lab
    lab.screenshot(tmp_path / 'page.png')


def test_keys_move_a_box(page, notebook):
    "The left side of box a, with real keys, step by step: until its rank is another one. Then its width"
    boxes = by_letter(notebook.toy.boxes)
    x1, y1, x2, y2 = boxes['a']
    page.press('left', 20)
    boxes['a'] = [x1 + 1, y1, x2 + 1, y2]
    page.agrees(notebook.toy, boxes)
    assert ' → ' in page.table()['a'][3]
    assert page.sliders()[:4] == pytest.approx([x1 + 1, y1, x2 - x1, y2 - y1], abs=.025)
    page.press('width', -10)
    boxes['a'] = [x1 + 1, y1, x2 + .5, y2]
    page.agrees(notebook.toy, boxes)


def test_mouse_drags_a_box(page, notebook):
    "From the lower side of box h to the lower right: its object goes to another box"
    toy, boxes = notebook.toy, by_letter(notebook.toy.boxes)
    x1, y1, x2, y2 = boxes['h']
    page.drag(toy, (x1 * .4 + x2 * .6, y2), (1.4, .3))
    boxes['h'] = [x1 + 1.4, y1 + .3, x2 + 1.4, y2 + .3]
    page.agrees(toy, boxes)
    assert ' → ' in page.table()['h'][3] and page.chosen() == 'h'


def test_mouse_drags_a_corner(page, notebook):
    "The lower right one, inwards; then too far out; then past the opposite one"
    toy, boxes = notebook.toy, by_letter(notebook.toy.boxes)
    x1, y1, x2, y2 = boxes['i']
    page.drag(toy, (x2, y2), (-1, -.5))
    page.agrees(toy, boxes | dict(i=[x1, y1, x2 - 1, y2 - .5]))
    page.drag(toy, (x2 - 1, y2 - .5), (9, 2))
    page.agrees(toy, boxes | dict(i=[x1, y1, *toy.frame[2:]]))
    page.drag(toy, [v - .05 for v in toy.frame[2:]], (-13.5, -11.5))
    page.agrees(toy, boxes | dict(i=[x1, y1, x1 + .05, y1 + .05]))


def test_a_press_takes_a_corner_before_a_line_before_an_inside(page, notebook):
    toy, boxes, point = notebook.toy, by_letter(notebook.toy.boxes), (3.2, 2.6)
    inside = [l for l, (x1, y1, x2, y2) in boxes.items() if x1 < point[0] < x2 and y1 < point[1] < y2]
    smallest = min(inside, key=lambda l: (boxes[l][2] - boxes[l][0]) * (boxes[l][3] - boxes[l][1]))
    assert len(inside) > 1
    for before, at, letter in ('c', boxes['a'][2:], 'a'), *((l, point, l) for l in inside), ('i', point, smallest):
        page.enter('box', before)
        page.drag(toy, at, (0, 0))
        assert page.chosen() == letter
    page.agrees(toy, boxes)


def test_a_press_on_a_row_chooses_its_box(page):
    for letter in 'ce':
        x, y = page.middle(f'tr[data-box={letter}]')
        page.mouse('Pressed', x, y, 1)
        wait(lambda: page.each('tr.chosen', 'e.dataset.box') == [letter], 10, 'the row was not marked')
        assert page.chosen() == letter
        page.mouse('Released', x, y)


def test_gamma_and_beta(page, notebook):
    boxes = by_letter(notebook.toy.boxes)
    page.press('gamma', -20)
    page.press('beta', 4)
    page.agrees(notebook.toy, boxes, gamma=1., beta=.2)
    page.click('[name=reset]')  # what is compared with is of the same gamma and beta
    page.agrees(notebook.toy, boxes, written(notebook.toy, boxes, 1., .2), gamma=1., beta=.2)


def test_boxes_are_added_and_removed(page, notebook):
    toy, boxes = notebook.toy, by_letter(notebook.toy.boxes)
    page.enter('box', 'f')
    page.click('[name=add]')
    x1, y1, x2, y2 = boxes['f']
    w, h = x2 - x1, y2 - y1
    boxes['j'] = [x1 + w / 10, y1 + h / 10, x2 + w / 10, y2 + h / 10]
    page.agrees(toy, boxes)
    assert page.chosen() == 'j'
    labels = page.each('.label', "['x', 'y', 'width', 'height'].map(a => +e.getAttribute(a))")
    for i, (x, y, w, h) in enumerate(labels):  # do not cover each other
        assert all(x + w <= u or u + v <= x or abs(y - z) >= h for u, z, v, _ in labels[:i])
    for _ in range(10): page.click('[name=remove]')
    wait(lambda: page.table() == {} == page.boxes(toy), 10, 'boxes are left')
    assert page.each(':disabled', 'e.name') == ['image', 'box', 'left', 'top', 'width', 'height', 'remove']
    page.click('[name=add]')
    wait(lambda: [*page.table()] == ['j'], 10, 'no box was added')  # letters of boxes at first stay theirs
    page.agrees(toy, page.boxes(toy))
    page.click('[name=reset]')
    page.agrees(toy, by_letter(toy.boxes))


def test_random_moves(page, notebook):
    "Whatever is done, table and picture agree, boxes stay in the frame, and the sliders show the chosen one"
    toy, rng = notebook.toy, random.Random(0)
    for step in range(25):
        kind = rng.randrange(8)
        if kind == 0: page.click('[name=add]')
        elif kind == 1: page.click('[name=remove]')
        elif kind == 2: page.enter('box', rng.choice([*page.table()]))
        elif kind < 5: page.press(rng.choice(['left', 'top', 'width', 'height']), rng.randint(-30, 30))
        else: page.drag(toy, [rng.uniform(0, m) for m in toy.frame[2:]], [rng.uniform(-4, 4), rng.uniform(-4, 4)])
        boxes = page.boxes(toy)
        page.agrees(toy, boxes)
        x1, y1, x2, y2 = boxes[page.chosen()]
        assert page.sliders()[:4] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=.03)
        (left, top, right, bottom), e = toy.frame, 1e-6
        assert left - e <= x1 < x2 <= right + e and top - e <= y1 < y2 <= bottom + e


def test_an_image_of_a_run(page, run):
    "The run in the list, its image below the boxes, and keys that move a box; an image that is not there"
    scene = run_scene('a-run', runs=run[0])
    boxes = by_letter(scene.boxes)
    page.enter('shown', 'a-run')
    page.agrees(scene, boxes)
    url = page.js("getComputedStyle(document.querySelector('.pisa-explorer svg')).backgroundImage.slice(5, -2)")
    assert page.js(f"(async i => {{i.src = {url!r}; await i.decode(); return i.naturalWidth}})(new Image())") == 128
    x1, y1, x2, y2 = boxes['a']
    d = round(2 * x1) / 2 + (10 if x2 < 117 else -10) - x1  # from the step nearest to x1, by 20 steps of 0.5 px
    page.press('left', 20 if d > 0 else -20)
    boxes['a'] = [x1 + d, y1, x2 + d, y2]
    page.agrees(scene, boxes)
    said = lambda: page.each('.message', 'e.textContent')[0]
    page.enter('image', '16')
    wait(lambda: said() == 'Not shown: image=16: shapes has validation images 0 to 15', 10, 'no message')
    page.agrees(scene, boxes)
    page.enter('image', '0')
    wait(lambda: said() == '', 10, 'the message stays')


@pytest.mark.parametrize('width', [1500, 1000])
def test_nothing_is_cut_off(page, width):
    "Side by side where there is room, below each other where there is not, and all of it within the cell's output"
    page.call('Emulation.setDeviceMetricsOverride', width=width, height=1000, deviceScaleFactor=1, mobile=False)
    def fits():
        whole, svg, table = page.js("""['.jp-OutputArea-output:has(', ' svg', ' table'].map((s, i) => document
            .querySelector(i ? '.pisa-explorer' + s : s + '.pisa-explorer)').getBoundingClientRect())
            .map(r => [r.left, r.top, r.right, r.bottom])""")
        apart = svg[2] < table[0] if width == 1500 else svg[3] < table[1]
        return apart and whole[0] <= svg[0] and all(max(svg[k], table[k]) <= whole[k] for k in (2, 3))
    wait(fits, 10, 'the explorer does not fit')
