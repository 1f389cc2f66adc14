"pisa.lab.data: the rendered data set to the byte, and folders that others made"
import hashlib, json, os, shutil, subprocess, sys, warnings
from fractions import Fraction
from pathlib import Path
import numpy as np
import pytest
from pycocotools import mask as rle
from pisa.lab import data
from pisa.lab.data import load, load_test_dev
from pisa.lab.files import read_json, root, write_json
from pisa.lab.shapes import AREA_LIMITS, CLASSES, SIZE, VERSION, coverage, outline, place, render
from pisa.lab.show import load_samples, show_grid

BCCD = Path(os.environ.get('PISA_BCCD', root().parent/'shared'/'data'/'bccd'))  # a folder in the VOC layout


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    "A cache folder of this module's own"
    old, folder = os.environ.get('PISA_DATA'), tmp_path_factory.mktemp('cache')
    os.environ['PISA_DATA'] = str(folder)
    yield folder
    if old is None: del os.environ['PISA_DATA']
    else: os.environ['PISA_DATA'] = old


@pytest.fixture(scope='module')
def spec(cache): return load('shapes', n_train=16, n_val=8)


# ---- shapes

def test_shapes_bytes(spec):
    "The same bytes on every machine: whoever changes a pixel raises VERSION and pins the new hash"
    sha = hashlib.sha256()
    for folder in (spec.train_images, spec.val_images):
        for f in sorted(folder.iterdir()): sha.update(f.read_bytes())
    for f in (spec.train_json, spec.val_json): sha.update(json.dumps(read_json(f), sort_keys=True).encode())
    assert (VERSION, sha.hexdigest()[:32]) == (1, '8c9f3effb6dd1320b0cda43bd6ce19a8')
    assert spec.fingerprint == '4c03635f6921430b'


def test_shapes_are_prefixes_of_each_other(spec):
    fewer = load('shapes', n_train=5, n_val=8)
    for f in fewer.train_images.iterdir(): assert f.read_bytes() == (spec.train_images/f.name).read_bytes()
    a, b = (read_json(s.train_json)['annotations'] for s in (fewer, spec))
    assert a == b[:len(a)]
    assert fewer.fingerprint != spec.fingerprint


def test_global_random_state_is_left_alone():
    np.random.seed(3); a = np.random.rand()
    np.random.seed(3); render('train', 0)
    assert np.random.rand() == a


def test_objects():
    "Sizes in thirds, one to six objects, disjoint masks, every class"
    images = [render('train', i) for i in range(250)]
    areas = np.concatenate([m.sum((1, 2)) for *_, m in images])
    shares = np.bincount(np.searchsorted(AREA_LIMITS, areas), minlength=3)/len(areas)
    assert (abs(shares - 1/3) < .08).all(), shares
    assert areas.min() >= 20
    assert {len(l) for _, l, _ in images} == set(range(1, 7))
    assert all(m.sum(0).max() <= 1 for *_, m in images)
    counts = np.bincount(np.concatenate([l for _, l, _ in images]), minlength=len(CLASSES))
    assert counts.min() > .6*counts.mean()
    assert all(image.dtype == np.uint8 and image.shape == (SIZE, SIZE, 3) for image, *_ in images)


def test_objects_differ_from_what_is_below():
    for i in range(30):
        image, _, masks = render('val', i)
        for m in masks: assert image[m].std(0).max() < 40  # one colour each, with a little shade and noise


def test_annotations_match_masks(spec):
    gt = read_json(spec.val_json)
    assert [c['id'] for c in gt['categories']] == list(range(1, 9))
    assert len({a['id'] for a in gt['annotations']}) == len(gt['annotations'])
    for a in gt['annotations']:
        mask = rle.decode(a['segmentation'])
        assert rle.toBbox(a['segmentation']).tolist() == a['bbox']
        assert mask.sum() == a['area'] and a['iscrowd'] == 0
        assert (mask.astype(bool) == render('val', a['image_id'] - 1)[2]).all((1, 2)).any()


def test_coverage_is_exact():
    "Against the definition, in fractions"
    def inside(polygons, x, y):
        odd = False
        for p in polygons:
            for (x1, y1), (x2, y2) in zip(p.tolist(), np.roll(p, -1, 0).tolist()):
                if (y1 <= y) != (y2 <= y) and x >= x1 + Fraction((y - y1)*(x2 - x1), y2 - y1): odd = not odd
        return odd
    rng = np.random.RandomState(0)
    for k in range(12):
        polygons = [rng.randint(-20, 120, (v, 2)) for v in ((3,), (7,), (4, 5))[k % 3]]
        cover = coverage(polygons, 6, 5)
        for i in range(6):
            for j in range(5):
                assert cover[i, j] == sum(inside(polygons, 16*j + 4*a + 2, 16*i + 4*b + 2) for a in range(4) for b in range(4))


@pytest.mark.parametrize('name', CLASSES)
def test_outline_area(name):
    "What is filled is what the outline holds, however it is turned"
    area = sum(s*abs((p[:, 0]*np.roll(p, -1, 0)[:, 1] - np.roll(p, -1, 0)[:, 0]*p[:, 1]).sum())
               for s, p in zip((1, -1), outline(name)))/2/1024**2*20**2
    for angle, mirror in ((0, False), (13, True), (100, False)):
        got = coverage([p + 512 for p in place(outline(name), 320, 320, angle, mirror)], 64, 64).sum()/16
        assert got == pytest.approx(area, rel=.01)


def test_unknown_shape():
    with pytest.raises(ValueError, match="did you mean 'disk'"): outline('disc')
    with pytest.raises(ValueError, match='train, val'): render('test', 0)


def test_rendered_once_and_quietly(spec, capfd):
    assert load('shapes', n_train=16, n_val=8) == spec
    out, err = capfd.readouterr()
    assert out + err == ''


def test_two_processes_at_once(tmp_path):
    code = "from pisa.lab.data import load; print(load('shapes', n_train=40, n_val=2).fingerprint)"
    env = dict(os.environ, PISA_DATA=str(tmp_path), PYTHONPATH=str(root()))
    runs = [subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    a, b = (p.communicate()[0].strip() for p in runs)
    assert a == b and len(a) == 16
    assert [f.name for f in (tmp_path/'shapes').iterdir()] == ['v1-40-2']


def test_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('PISA_DATA', str(tmp_path))
    def interrupt(split, index):
        if index == 3: raise KeyboardInterrupt
        return render(split, index)
    monkeypatch.setattr(data, 'render', interrupt)
    with pytest.raises(KeyboardInterrupt): load('shapes', n_train=5, n_val=1)
    assert list((tmp_path/'shapes').iterdir()) == []


def test_lost_image_of_shapes(tmp_path, monkeypatch):
    monkeypatch.setenv('PISA_DATA', str(tmp_path))
    s = load('shapes', n_train=3, n_val=1)
    (s.train_images/'000001.bmp').unlink()
    with pytest.raises(FileNotFoundError, match=r'000001\.bmp does not exist.*it will be rendered again'): load('shapes', n_train=3, n_val=1)


@pytest.mark.parametrize('kwargs, message', [
    (dict(dataset='shape'), "did you mean 'shapes'"), (dict(n_val=0), 'n_val=0 leaves no image'), (dict(n_train=-1), 'leaves no image'),
    (dict(n_train=2.5), 'leaves no image'), (dict(n_train=True), 'leaves no image'), (dict(dataset='shapes', data_root='x'), "no use with dataset='shapes'"),
    (dict(classes=['disk']), 'cannot be given for shapes'), (dict(dataset='coco'), 'needs data_root'), (dict(dataset='voc'), 'needs data_root')])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message) as e: load(**kwargs)
    assert '\n' not in str(e.value)


# ---- samples and pictures

def test_samples(spec):
    for i, s in enumerate(load_samples(spec, 'val')):
        image, labels, masks = render('val', i)
        assert (s.image == image).all() and (s.labels == labels).all() and (s.masks == masks).all()
        for box, m in zip(s.boxes, masks):
            y, x = m.nonzero()
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert all(np.array_equal(s.image, render('train', i)[0]) for s, i in zip(load_samples(spec, 'train', [3, 1]), (3, 1)))
    with pytest.raises(IndexError, match='0 to 7, not 8'): load_samples(spec, 'val', [8])
    with pytest.raises(IndexError): load_samples(spec, 'val', [-1])


def test_grid(spec):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig = show_grid(spec, 'val', [0, 2, 3])
    boxes = [len(s.boxes) for s in load_samples(spec, 'val', [0, 2, 3])]
    assert [len(ax.patches) for ax in fig.axes] == boxes + [0]
    assert [t.get_text() for t in fig.axes[0].texts] and len(fig.axes[0].texts) == boxes[0]
    plt.close(fig)


# ---- VOC layout

def _xml(*objects):
    return '<annotation><filename>x.jpg</filename>' + ''.join(
        f'<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><bndbox>'
        + ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box)) + '</bndbox></object>'
        for name, hard, box in objects) + '</annotation>'


@pytest.fixture
def voc(tmp_path):
    "Four images of 40 x 30 px"
    from PIL import Image
    folder = tmp_path/'cells'
    for f in ('Annotations', 'JPEGImages', 'ImageSets/Main'): (folder/f).mkdir(parents=True)
    boxes = [('b', 0, (1, 1, 1 + 9, 1 + 9)), ('a', 1, (0, 5, 60, 30))], [('c', 0, (2.5, 3, 7.5, 9))], [], [('a', 0, (3, 3, 8, 8))]
    for i, objects in enumerate(boxes):
        Image.new('RGB', (40, 30), (i*20, 0, 0)).save(folder/f'JPEGImages/im {i}.png')
        (folder/f'Annotations/im {i}.xml').write_text(_xml(*objects))
    (folder/'ImageSets/Main/train.txt').write_text('im 0\nim 1.png\r\n\nim 2\n')
    (folder/'ImageSets/Main/val.txt').write_text('im 3')
    return folder


def test_voc(voc):
    s = load('voc', voc)
    assert (s.name, s.classes, s.n_train, s.n_val, s.has_masks, s.area_limits) == ('cells', ('a', 'b', 'c'), 3, 1, False, (1024, 9216))
    gt = read_json(s.train_json)
    assert [(i['file_name'], i['width'], i['height']) for i in gt['images']] == [(f'im {i}.png', 40, 30) for i in range(3)]
    assert [(a['category_id'], a['bbox'], a['iscrowd'], a['difficult']) for a in gt['annotations']] == [
        (2, [0, 0, 10, 10], 0, 0), (1, [0, 4, 40, 26], 1, 1), (3, [1.5, 2, 6, 7], 0, 0)]
    first, second, empty = load_samples(s, 'train', 3)
    assert first.labels.tolist() == [1] and first.masks is None and first.boxes.tolist() == [[0, 0, 10, 10]]
    assert empty.boxes.shape == (0, 4)
    show_grid(s, indices=2)


def test_voc_prefers_trainval_and_test(voc):
    (voc/'ImageSets/Main/trainval.txt').write_text('im 0\nim 3\n')
    (voc/'ImageSets/Main/test.txt').write_text('im 1\nim 2\n')
    s = load('voc', voc)
    assert (s.n_train, s.n_val) == (2, 2) and 'trainval' in s.note


def test_one_list_of_voc_is_one_split(voc):
    "As VOC2007's test images are distributed"
    (voc/'ImageSets/Main/train.txt').rename(voc/'ImageSets/Main/test.txt')
    (voc/'ImageSets/Main/val.txt').unlink()
    (voc/'Annotations/im 2.xml').write_text(_xml(('a', 0, (3, 3, 8, 8))))
    (voc/'Annotations/im 3.xml').rename(voc/'im 3.xml')
    assert (load('voc', voc).n_train, load('voc', voc).n_val, load('voc', voc, divide=False).n_val) == (2, 1, 3)
    assert not any('not named by' in n for n in load('voc', voc).report['notes'])
    (voc/'im 3.xml').rename(voc/'Annotations/im 3.xml')
    assert '1 annotation file not named by test.txt, not used' in load('voc', voc).report['notes']


def test_voc_limits_keep_the_classes(voc):
    s = load('voc', voc, n_train=1, n_val=5)
    assert (s.classes, s.n_train, s.n_val) == (('a', 'b', 'c'), 1, 1)


def test_voc_classes_given(voc):
    assert load('voc', voc, classes=['c', 'b', 'a', 'd']).classes == ('c', 'b', 'a', 'd')
    with pytest.raises(ValueError, match=r"im 1\.xml, object 1: an object of class 'c', which is not among the classes given: a, b"):
        load('voc', voc, classes=('a', 'b'))


def test_voc_fingerprint_follows_the_content(voc, tmp_path):
    was = load('voc', voc)
    assert load('voc', voc) == was
    shutil.copytree(voc, tmp_path/'other'/'cells')
    moved = load('voc', tmp_path/'other'/'cells')
    assert moved.fingerprint == was.fingerprint and moved.train_images == tmp_path/'other'/'cells'/'JPEGImages'
    (voc/'Annotations/im 2.xml').write_text(_xml(('a', 0, (3, 3, 9, 9))))
    now = load('voc', voc)
    assert now.fingerprint != was.fingerprint and len(read_json(now.train_json)['annotations']) == 4


def test_voc_boxes_of_no_size(voc):
    (voc/'Annotations/im 2.xml').write_text(_xml(('a', 0, (3, 3, 3, 9)), ('a', 0, (3, 9, 8, 9)), ('a', 0, (50, 3, 60, 9)), ('a', 0, (3, 3, 9, 9))))
    (voc/'Annotations/im 1.xml').write_text(_xml(('c', 0, (9, 9, 5, 12))))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        s = load('voc', voc)
    assert len(seen) == 1
    assert 'a box of no size (3 times, first ' in str(seen[0].message) and 'a box outside of its image (1 time' in str(seen[0].message)
    places = [p.rpartition('/')[2] for _, places in s.report['left_out'].values() for p in places]
    assert places == ['im 1.xml, object 1', 'im 2.xml, object 1', 'im 2.xml, object 2', 'im 2.xml, object 3']
    assert len(read_json(s.train_json)['annotations']) == 3


@pytest.mark.parametrize('file, text, error, message', [
    ('Annotations/im 1.xml', None, FileNotFoundError, r'im 1\.xml does not exist'),
    ('Annotations/im 1.xml', '', ValueError, r'im 1\.xml is not XML'),
    ('Annotations/im 1.xml', _xml(('c', 0, ('x', 3, 7, 9))), ValueError, "the box of a 'c' needs"),
    ('Annotations/im 1.xml', _xml(('c', 0, ('nan', 3, 7, 9))), ValueError, 'not finite'),
    ('Annotations/im 1.xml', _xml(('', 0, (2, 3, 7, 9))), ValueError, 'object 1 has no name'),
    ('Annotations/im 1.xml', '<a><object><name>c</name></object></a>', ValueError, 'needs xmin, ymin'),
    ('JPEGImages/im 1.png', None, FileNotFoundError, 'restore the image or take it out of the split'),
    ('JPEGImages/im 1.png', 'no image', ValueError, r'im 1\.png cannot be read as an image'),
    ('ImageSets/Main/val.txt', '\n \n', ValueError, 'the split is empty'),
    ('ImageSets/Main/val.txt', '../JPEGImages/im 1', ValueError, 'leads out of the image folder'),
    ('ImageSets/Main/val.txt', '/etc/passwd', ValueError, 'leads out of the image folder'),
    ('ImageSets/Main/val.txt', 'sub/im 1', ValueError, 'has a folder in it')])
def test_voc_errors(voc, file, text, error, message):
    (voc/file).unlink() if text is None else (voc/file).write_text(text)
    with pytest.raises(error, match=message) as e: load('voc', voc)
    assert '\n' not in str(e.value)


def test_voc_without_images(voc):
    shutil.rmtree(voc/'JPEGImages')
    with pytest.raises(FileNotFoundError, match='JPEGImages does not exist'): load('voc', voc)
    with pytest.raises(FileNotFoundError, match='Annotations/ with XML files and JPEGImages/'): load('voc', voc/'nowhere')


# ---- VOC07+12

VOC_20 = ('aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train '
          'tvmonitor').split()  # in the order of the devkit


@pytest.fixture
def devkit(tmp_path):
    "Two training images of 2007 and one of 2012, one image to test, all of another colour; between them they have VOC's classes"
    from PIL import Image
    folder, names = tmp_path/'VOCdevkit', VOC_20[::-1]
    parts = (('VOC2007', dict(trainval=['000004', '000007'], test=['000001'], train=['000004'], val=['000007'])),
             ('VOC2012', dict(trainval=['2008_000002'], train=['2008_000002'])))
    for year, splits in parts:
        for f in ('Annotations', 'JPEGImages', 'ImageSets/Main'): (folder/year/f).mkdir(parents=True)
        for split, stems in splits.items():
            (folder/year/f'ImageSets/Main/{split}.txt').write_text('\n'.join(stems) + '\n')
            for stem in stems:
                k = int(stem[-1])
                Image.new('RGB', (50, 40), (k*20, 0, 0)).save(folder/year/f'JPEGImages/{stem}.png')
                (folder/year/f'Annotations/{stem}.xml').write_text(_xml(*((n, i % 2, (i + 1, k, i + 9, k + 9)) for i, n in enumerate(names[k % 4::4]))))
    return folder


def test_voc0712(devkit):
    s = load('voc', devkit)
    assert (s.n_train, s.n_val, s.classes, s.train_images, s.val_images) == (3, 1, tuple(VOC_20), devkit, devkit)
    train, val = read_json(s.train_json), read_json(s.val_json)
    assert [i['file_name'] for i in train['images']] == ['VOC2007/JPEGImages/000004.png', 'VOC2007/JPEGImages/000007.png', 'VOC2012/JPEGImages/2008_000002.png']
    assert [i['file_name'] for i in val['images']] == ['VOC2007/JPEGImages/000001.png']
    assert [c['name'] for c in val['categories']] == VOC_20
    assert [(x.image[0, 0, 0], len(x.boxes)) for x in load_samples(s, 'train', 3)] == [(80, 3), (140, 3), (40, 3)]  # of 5 objects 2 are difficult
    assert 'VOC2007 trainval + VOC2012 trainval' in s.note and 'VOC2007 test' in s.note and '\n' not in s.note


def test_voc0712_is_the_two_together(devkit):
    "The annotations are those of each year loaded for itself"
    both = read_json(load('voc', devkit).train_json)['annotations']
    (devkit/'VOC2012/ImageSets/Main/test.txt').write_text('2008_000002')
    alone = [a for year in ('VOC2007', 'VOC2012') for a in read_json(load('voc', devkit/year, classes=VOC_20).train_json)['annotations']]
    assert [[a[k] for k in ('category_id', 'bbox', 'difficult', 'area')] for a in both] == [[a[k] for k in ('category_id', 'bbox', 'difficult', 'area')] for a in alone]
    assert len({a['id'] for a in both}) == 15 and sorted({a['image_id'] for a in both}) == [1, 2, 3]


def test_voc0712_fingerprint(devkit, tmp_path):
    was = load('voc', devkit)
    shutil.copytree(devkit, tmp_path/'other'/'VOCdevkit')
    assert load('voc', tmp_path/'other'/'VOCdevkit').fingerprint == was.fingerprint
    (devkit/'VOC2012/Annotations/2008_000002.xml').write_text(_xml(*((n, 0, (3, 3, 9, 9)) for n in VOC_20)))
    assert load('voc', devkit).fingerprint != was.fingerprint


@pytest.mark.parametrize('gone, message', [
    ('VOC2012', r'VOC2012 does not exist: VOC07\+12 needs it beside VOC2007; for VOC2007 alone, give .*VOCdevkit/VOC2007'),
    ('VOC2007', r'VOC2007 does not exist: VOC07\+12 needs it beside VOC2012; for VOC2012 alone, give .*VOCdevkit/VOC2012'),
    ('VOC2007/ImageSets/Main/test.txt', r'VOC2007/ImageSets/Main/test\.txt does not exist'),
    ('VOC2007/ImageSets/Main/trainval.txt', r'VOC2007/ImageSets/Main/trainval\.txt does not exist'),  # `train` is no substitute here
    ('VOC2012/ImageSets/Main/trainval.txt', r'VOC2012/ImageSets/Main/trainval\.txt does not exist'),
    ('VOC2012/Annotations/2008_000002.xml', r'2008_000002\.xml does not exist'),
    ('VOC2012/JPEGImages', r'VOC2012/JPEGImages does not exist')])
def test_voc0712_with_something_missing(devkit, gone, message):
    if (devkit/gone).is_dir(): shutil.rmtree(devkit/gone)
    else: (devkit/gone).unlink()
    with pytest.raises(FileNotFoundError, match=message) as e: load('voc', devkit)
    assert '\n' not in str(e.value)


# ---- blood cells

@pytest.mark.skipif(not BCCD.is_dir(), reason=f'the blood cell data set is not at {BCCD}')
def test_bccd():
    with pytest.warns(UserWarning, match=r'a box of no size \(2 times, first .*BloodImage_00338.xml') as seen: s = load('voc', BCCD)
    assert len(seen) == 1
    assert (s.classes, s.n_train, s.n_val, s.fingerprint) == (('Platelets', 'RBC', 'WBC'), 292, 72, '90fa0178e3c643bf')  # the ids of recorded runs depend on it
    gt = [read_json(f) for f in (s.train_json, s.val_json)]
    assert sum(len(g['annotations']) for g in gt) == 4886
    for g in gt:
        size = {i['id']: (i['width'], i['height']) for i in g['images']}
        for a in g['annotations']:
            (x, y, w, h), (W, H) = a['bbox'], size[a['image_id']]
            assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= W and y + h <= H


# ---- COCO 2017

@pytest.fixture
def coco(tmp_path, spec):
    "The layout of COCO 2017, with gaps in the category ids"
    folder = tmp_path/'coco'
    for split, file, images in (('train', spec.train_json, spec.train_images), ('val', spec.val_json, spec.val_images)):
        shutil.copytree(images, folder/f'{split}2017')
        gt = read_json(file)
        for c in gt['categories']: c['id'] *= 3
        for a in gt['annotations']: a['category_id'] *= 3
        write_json(folder/'annotations'/f'instances_{split}2017.json', gt)
    return folder


def _edit(file, change):
    gt = read_json(file)
    change(gt)
    write_json(file, gt)


def test_coco(coco):
    s = load('coco', coco)
    assert (s.classes, s.n_train, s.n_val, s.has_masks) == (CLASSES, 16, 8, True)
    assert s.train_json == coco/'annotations/instances_train2017.json' and s.val_images == coco/'val2017'
    assert load_samples(s, 'val', [3])[0].labels.tolist() == render('val', 3)[1].tolist()
    assert load('coco', coco) == s


def test_coco_first_images(coco):
    s = load('coco', coco, n_train=3)
    gt, whole = read_json(s.train_json), read_json(coco/'annotations/instances_train2017.json')
    assert (s.n_train, s.n_val, gt['images']) == (3, 8, whole['images'][:3])
    assert [{**a, 'category_id': 3*a['category_id']} for a in gt['annotations']] == [a for a in whole['annotations'] if a['image_id'] <= 3]
    assert s.fingerprint != load('coco', coco).fingerprint


def test_coco_kinds_of_masks(coco):
    "Polygons, and run lengths as numbers, as COCO has them; crowds are left out of the samples"
    def change(gt):
        a, b = [a for a in gt['annotations'] if a['image_id'] == 4][:2]
        a['segmentation'] = [[10, 10, 20, 10, 20, 30, 10, 30]]
        b['segmentation'] = dict(size=[128, 128], counts=[128*2, 128, 128*125])
    file = coco/'annotations/instances_val2017.json'
    _edit(file, change)
    masks = load_samples(load('coco', coco), 'val', [3])[0].masks
    assert masks[0].sum() == 200 and masks[0][10:30, 10:20].all()
    assert masks[1][:, 2].all() and masks[1].sum() == 128
    _edit(file, lambda gt: [a.update(iscrowd=1) for a in gt['annotations'] if a['image_id'] == 4])
    assert len(load_samples(load('coco', coco), 'val', [3])[0].boxes) == 0


@pytest.mark.parametrize('change, message', [
    (lambda gt: gt['images'][0].update(file_name='../x.bmp'), 'leads out of the image folder'),
    (lambda gt: gt['images'][0].update(file_name='/x.bmp'), 'leads out of the image folder'),
    (lambda gt: gt.pop('categories'), "not an annotation file of COCO"),
    (lambda gt: gt['images'].clear(), 'the split is empty'),
    (lambda gt: gt['categories'][0].update(name='x'), "has the class 'x', which .*instances_train2017.json does not have")])
def test_coco_errors(coco, change, message):
    _edit(coco/'annotations/instances_val2017.json', change)
    with pytest.raises(ValueError, match=message) as e: load('coco', coco)
    assert 'instances_val2017.json' in str(e.value) and '\n' not in str(e.value)


def test_coco_files_missing(coco):
    (coco/'val2017/000003.bmp').unlink()
    with pytest.raises(FileNotFoundError, match=r'000003\.bmp does not exist'): load('coco', coco)
    (coco/'annotations/instances_val2017.json').write_text('{')
    with pytest.raises(ValueError, match=r'instances_val2017\.json is not JSON'): load('coco', coco)
    (coco/'annotations/instances_val2017.json').unlink()
    with pytest.raises(FileNotFoundError, match='COCO 2017 keeps its annotations there'): load('coco', coco)
    with pytest.raises(FileNotFoundError, match='annotations/, train2017/ and val2017/'): load('coco', coco/'nowhere')


# ---- COCO test-dev

@pytest.fixture
def info(coco):
    "Images and categories; of annotations not even the word"
    gt = read_json(coco/'annotations/instances_val2017.json')
    del gt['annotations']
    shutil.copytree(coco/'val2017', coco/'test2017')
    return write_json(coco/'annotations/image_info_test-dev2017.json', gt)


def test_load_test_dev(coco, info):
    spec, truth = load_test_dev(str(coco)), read_json(info)
    assert (spec.val_json, spec.val_images, spec.n_train, spec.n_val) == (info, coco/'test2017', 0, len(truth['images']))
    assert spec.classes == tuple(c['name'] for c in truth['categories'])
    (coco/'test2017/000001.bmp').unlink()
    with pytest.raises(FileNotFoundError, match=r'test2017/000001\.bmp does not exist, but .*image_info_test-dev2017\.json names it'): load_test_dev(coco)
    shutil.rmtree(coco/'test2017')
    with pytest.raises(FileNotFoundError, match='test2017 does not exist'): load_test_dev(coco)
    info.write_text('[]')
    with pytest.raises(ValueError, match='not an annotation file of COCO'): load_test_dev(coco)
    info.unlink()
    with pytest.raises(FileNotFoundError, match='COCO keeps the list of the test-dev images there'): load_test_dev(coco)
