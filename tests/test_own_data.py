"Folders as people have them: each mistake is mended and counted, left out and counted, or refused in one line"
import json, math, shutil, subprocess, sys, warnings
import numpy as np
import pytest

pytest.importorskip('pycocotools')
from PIL import Image
from pisa.lab import data
from pisa.lab.data import load
from pisa.lab.files import read_json
from pisa.lab.show import load_samples


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('PISA_DATA', str(tmp_path/'cache'))


def draw(file, size=(40, 30), **how):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(len(str(file.name))).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **how)
    return file


def coco(n=3, ids=None, **more):
    "An annotation file of n images of 40 x 30, two objects each"
    ids = ids or list(range(1, n + 1))
    return dict(images=[dict(id=i, file_name=f'{k}.jpg', width=40, height=30) for k, i in enumerate(ids)],
                categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
                annotations=[dict(id=2*k + c, image_id=i, category_id=c, bbox=[5*c, 4, 10, 8 + k], area=10*(8 + k), iscrowd=0)
                             for k, i in enumerate(ids) for c in (1, 2)]) | more


@pytest.fixture
def folder(tmp_path):
    "train.json and val.json, and images/"
    root = tmp_path/'mine'
    for k in range(3): draw(root/f'images/{k}.jpg')
    for split in ('train', 'val'): (root/f'{split}.json').write_text(json.dumps(coco()))
    return root


def change(root, edit, split='train'):
    file = root/f'{split}.json'
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return content


def loaded(root, **how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load('auto', root, **how)


def done(spec): return {what: n for kind in ('mended', 'left_out') for what, (n, _) in spec.report[kind].items()}


def refusal(root):
    "The error of a folder, which is one line; None if it loads"
    try: loaded(root)
    except (ValueError, FileNotFoundError) as e:
        assert '\n' not in str(e), e
        return str(e)


def annotations(spec, split='train'): return read_json(getattr(spec, f'{split}_json'))['annotations']


def refused(root, *words):
    text = refusal(root)
    assert text and all(w in text for w in words), text


def first(**fields): return lambda c: c['annotations'][0].update(fields)


# ---- what an annotation file of COCO can get wrong

def test_nothing_wrong(folder):
    spec = loaded(folder)
    assert (spec.dataset, spec.classes, spec.n_train, spec.n_val, done(spec)) == ('folder', ('cat', 'dog'), 3, 3, {})
    assert spec.report['notes'][:1] == [f'3 images in both splits, the first is {folder}/images/0.jpg']
    assert spec.train_json == folder/'train.json' and spec.train_images == folder/'images'


def test_categories_in_any_order_have_their_own_ap(folder):
    "AP by class, counted by hand: all cats are found, and no dog"
    from pisa.lab.evaluate import class_ap, precisions
    for split in ('train', 'val'):
        change(folder, lambda c: c.update(categories=[dict(id=9, name='dog'), dict(id=4, name='cat')],
                                          annotations=[a | {'category_id': {1: 4, 2: 9}[a['category_id']]} for a in c['annotations']]), split)
    spec = loaded(folder)
    assert spec.classes == ('cat', 'dog')
    content = read_json(spec.val_json)
    number = {c['name']: c['id'] for c in content['categories']}
    found = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=.9) for a in content['annotations'] if a['category_id'] == number['cat']]
    samples = load_samples(spec, 'val', 3)
    assert all(s.texts == ['cat', 'dog'] and s.labels.tolist() == [0, 1] for s in samples)
    ap = class_ap(precisions(found, spec.val_json))[..., 0]
    assert dict(zip(spec.classes, ap.mean(0))) == {'cat': pytest.approx(100), 'dog': pytest.approx(0)}


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_in_parts_of_the_image_are_refused(folder, split):
    change(folder, lambda c: [a.update(bbox=[.1, .2, .3, .4]) for a in c['annotations']], split)
    refused(folder, f'{split}.json', 'between 0 and 1', 'multiply by its width')


def test_ids_of_images_as_text_on_one_side(folder):
    change(folder, lambda c: [a.update(image_id=str(a['image_id'])) for a in c['annotations'][:2]])
    spec = loaded(folder)
    assert done(spec) == {'an image id was written as text': 2} and len(annotations(spec)) == 6


def test_ids_of_images_that_are_text(folder):
    for split in ('train', 'val'): (folder/f'{split}.json').write_text(json.dumps(coco(ids=['a', 'b-1', 'ü'])))
    spec = loaded(folder)
    assert [i['id'] for i in read_json(spec.val_json)['images']] == [1, 2, 3]
    assert sorted({a['image_id'] for a in annotations(spec, 'val')}) == [1, 2, 3]
    assert done(spec) == {'image ids were no whole numbers, so images are numbered from 1': 2}


@pytest.mark.parametrize('edit, words', [
    (first(category_id=9), ['annotation 1', 'category 9', '1 (cat), 2 (dog)']),
    (first(category_id=None), ['annotation 1', 'category None']),
    (first(image_id=77), ['annotation 1', 'image 77']),
    (first(image_id=None), ['annotation 1', 'image None']),
    (first(bbox=[1, None, 3, 4]), ['annotation 1', 'bbox is [1, None, 3, 4]', 'not all numbers']),
    (first(bbox=None), ['annotation 1', 'bbox is None']),
    (lambda c: c['annotations'][0].pop('bbox'), ['annotation 1', 'bbox is None']),
    (first(bbox=[1, 2, 3]), ['annotation 1', '4 numbers']),
    (first(bbox=[1, 2, math.inf, 4]), ['annotation 1', 'not finite']),
    (first(bbox='1 2 3 4'), ['annotation 1', '4 numbers']),
    (first(segmentation=[[1, 2, 3, 'x', 5, 6]]), ['annotation 1', 'not all numbers']),
    (first(segmentation=dict(size=[9, 9], counts='x')), ['annotation 1', 'another size']),
    (first(segmentation=7), ['annotation 1', 'no polygons']),
    (first(iscrowd='no'), ['annotation 1', "iscrowd is 'no'"]),
    (lambda c: c['images'][1].update(width=80, height=60), ['1.jpg', '80x60', '40x30']),
    (lambda c: c['images'][1].update(id=1), ['two images have the id 1']),
    (lambda c: c['images'][1].update(file_name='0.jpg'), ['0.jpg twice']),
    (lambda c: c['images'][1].update(file_name='../0.jpg'), ['leads out']),
    (lambda c: c['images'][1].pop('file_name'), ['images[1] has no file_name']),
    (lambda c: c['images'][1].update(id=None), ['images[1] has the id None']),
    (lambda c: c['images'].append('x'), ['images[3]']),
    (lambda c: c['categories'][1].update(name='cat'), ["two classes of the name 'cat'"]),
    (lambda c: c['categories'][1].update(id=1), ['two categories have the id 1']),
    (lambda c: c['categories'][1].update(name=' '), ['categories[1] has no name']),
    (lambda c: c['categories'].clear(), ['no categories']),
    (lambda c: c['annotations'].clear(), ['nothing to learn']),
    (lambda c: c.pop('annotations'), ["no list 'annotations'"]),
    (lambda c: c.update(annotations={}), ["no list 'annotations'"]),
])
def test_refused_with_file_and_place(folder, edit, words):
    change(folder, edit)
    refused(folder, str(folder), *words)


@pytest.mark.parametrize('edit, what, n', [
    (first(area=None), 'an area was missing', 1),
    (lambda c: [a.pop('area') for a in c['annotations']], 'an area was missing', 6),
    (lambda c: [a.pop('iscrowd') for a in c['annotations']], 'iscrowd was missing', 6),
    (first(bbox=['5', '4', '10', '8.0']), 'numbers were written as text', 1),
    (first(bbox=[30, 4, 30, 8]), 'a box left its image and was clipped', 1),
    (first(segmentation=[5, 4, 15, 4, 15, 12]), 'a polygon was not in a list of polygons', 1),
    (first(id=2), 'two annotations had the same id', 1),
    (lambda c: c['images'][0].pop('width'), 'width and height of an image were missing', 1),
    (lambda c: c['images'][0].update(width=0), 'width and height of an image were missing', 1),
])
def test_mended_and_counted(folder, edit, what, n):
    change(folder, edit)
    spec = loaded(folder)
    assert done(spec) == {what: n} and len(annotations(spec)) == 6
    for a in annotations(spec):
        assert a['area'] > 0 and a['iscrowd'] == 0 and a['bbox'][0] + a['bbox'][2] <= 40
    assert [i['width'] for i in read_json(spec.train_json)['images']] == [40]*3
    place, = spec.report['mended'][what][1][:1]
    assert place.startswith('train.json: ')


@pytest.mark.parametrize('edit, what, rest', [
    (first(bbox=[5, 4, 0, 8]), 'a box of no size', 5),
    (first(bbox=[5, 4, 10, -8]), 'a box of no size', 5),
    (first(bbox=[60, 4, 10, 8]), 'a box outside of its image', 5),
    (lambda c: c['annotations'].append(c['annotations'][0] | {'id': 99}), 'the same object twice', 6),
    (first(segmentation=[[1, 1, 5, 5]]), 'a polygon of fewer than three points, or of an odd count of numbers', 6),
    (first(segmentation=[[1, 1, 5, 1, 9, 1]]), 'a mask of no area', 6),
    (first(segmentation=[[.1, .1, .5, .1, .5, .5]]), 'a mask of less than a pixel', 6),
])
def test_left_out_and_counted(folder, edit, what, rest):
    change(folder, edit)
    with pytest.warns(UserWarning, match=what): spec = load('auto', folder)
    assert done(spec) == {what: 1} and len(annotations(spec)) == rest
    with pytest.warns(UserWarning, match=what): load('auto', folder)  # also when it is remembered


def test_a_box_from_its_polygons(folder):
    change(folder, lambda c: c['annotations'][0].update(segmentation=[[3, 3, 9, 3, 9, 11]]) or c['annotations'][0].pop('bbox'))
    spec = loaded(folder)
    assert annotations(spec)[0]['bbox'] == [3, 3, 6, 8] and 'a missing box was computed from the polygons' in done(spec)


def test_masks_of_some_objects_only(folder):
    "Mask R-CNN is refused before it trains"
    pytest.importorskip('mmdet')
    from pisa.lab.experiments import experiment
    from pisa.lab.plan import make_plan
    change(folder, lambda c: [a.update(segmentation=[[5, 4, 15, 4, 15, 12]]) for a in c['annotations'][:4]])
    spec = loaded(folder)
    assert not spec.has_masks and 'train: 2 of 6 objects without a mask, so Mask R-CNN cannot be trained' in spec.report['notes']
    with pytest.raises(ValueError, match='mask_rcnn needs a mask of every object, which mine does not have'):
        make_plan(experiment('mask_rcnn', dataset='folder'), spec, folder/'runs', 0)


def test_a_class_without_objects(folder):
    for split in ('train', 'val'): change(folder, lambda c: c['categories'].insert(0, dict(id=0, name='animals', supercategory='none')), split)
    spec = loaded(folder)
    assert spec.classes == ('animals', 'cat', 'dog') and 'train: no object of animals' in spec.report['notes']


def test_images_without_objects_are_counted(folder):
    change(folder, lambda c: c.update(annotations=[a for a in c['annotations'] if a['image_id'] == 2]))
    spec = loaded(folder)
    assert spec.report['found']['train']['without'] == 2
    assert any(n.startswith('train: 2 images without an annotation, not used to train; -p overrides train_dataloader.dataset.filter_cfg.filter_empty_gt=False uses them') for n in spec.report['notes'])


# ---- images

def turn(file, orientation, size=(40, 30)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return draw(file, size, exif=exif, quality=95)


@pytest.mark.parametrize('orientation', range(2, 9))
@pytest.mark.parametrize('said', ['stored', 'upright', 'nothing'])
def test_one_frame_for_a_turned_image(folder, said, orientation):
    "Training, figures and boxes agree: the frame is the one that width and height fit"
    pytest.importorskip('mmdet')
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope
    from pisa.lab.config import config
    from pisa.lab.experiments import experiment
    turn(folder/'images/0.jpg', orientation)
    swaps = orientation >= 5
    upright = (30, 40) if swaps else (40, 30)
    def edit(c):
        if said == 'nothing': c['images'][0].pop('width')
        else: c['images'][0].update(zip(('width', 'height'), (40, 30) if said == 'stored' else upright))
        for a in c['annotations'][:2]: a.update(bbox=[3, 5, 20, 24])
        c['annotations'][1]['bbox'][0] = 4
    change(folder, edit)
    spec = loaded(folder)
    with Image.open(folder/'images/0.jpg') as image: stored = np.asarray(image.convert('RGB'))
    from PIL import ImageOps
    with Image.open(folder/'images/0.jpg') as image: shown = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    want = stored if said == 'stored' and swaps else shown
    sample, = load_samples(spec, 'train', 1)
    assert sample.image.shape == want.shape
    assert np.abs(sample.image.astype(int) - want).mean() < (40 if want is shown else 1)  # noise, and a second JPEG
    cfg = config(experiment('faster_rcnn', dataset='folder'), spec)
    init_default_scope('mmdet')
    row = DATASETS.build(cfg.train_dataloader.dataset | dict(pipeline=cfg.train_dataloader.dataset.pipeline[:2]))[0]
    assert row['img'].shape == want.shape and np.abs(row['img'][..., ::-1].astype(int) - sample.image).mean() < 3
    assert row['gt_bboxes'].tensor.tolist()[0] == [3, 5, 23, 29]


def test_damaged_images_are_named(folder):
    content = (folder/'images/1.jpg').read_bytes()
    (folder/'images/1.jpg').write_bytes(content[:len(content)//2])
    refused(folder, '1.jpg cannot be read as an image', 'truncated')
    (folder/'images/1.jpg').write_text('not an image')
    (folder/'images/2.jpg').unlink()
    refused(folder, '1.jpg cannot be read as an image', 'and 1 more wrong image')


def test_a_huge_image_is_named(folder):
    Image.new('1', (20_000, 10_000)).save(folder/'images/1.png')
    change(folder, lambda c: c['images'][1].update(file_name='1.png', width=20_000, height=10_000))
    refused(folder, '1.png has more than', 'make it smaller')


# ---- layouts

def test_roboflow_coco(tmp_path):
    root = tmp_path/'robo'
    for split, n in (('train', 3), ('valid', 2), ('test', 1)):
        for k in range(n): draw(root/f'{split}/{k}.jpg')
        (root/f'{split}/_annotations.coco.json').write_text(json.dumps(coco(n)))
    spec = loaded(root)
    assert (spec.n_train, spec.n_val, spec.dataset, spec.val_images) == (3, 2, 'folder', root/'valid')


@pytest.mark.parametrize('json_at, images_at', [
    ('annotations.json', 'images'), ('labels.json', '.'), ('annotations/instances_default.json', 'images'), ('result.json', 'photos')])
def test_one_coco_file_is_divided(tmp_path, json_at, images_at):
    root = tmp_path/'one'
    for k in range(10): draw(root/images_at/f'{k}.jpg')
    (root/json_at).parent.mkdir(exist_ok=True)
    (root/json_at).write_text(json.dumps(coco(10)), encoding='utf-8-sig')
    spec = loaded(root)
    assert (spec.n_train, spec.n_val) == (8, 2) and ' divided into ' in spec.note
    names = [{i['file_name'] for i in read_json(f)['images']} for f in (spec.train_json, spec.val_json)]
    assert len(names[0] | names[1]) == 10 and loaded(root).fingerprint == spec.fingerprint
    assert len(annotations(spec)) == 16 and len(annotations(spec, 'val')) == 4
    assert any(n.startswith('one split: a fifth of the images') for n in spec.report['notes'])
    whole = load('auto', root, divide=False)
    assert (whole.n_val, len(annotations(whole, 'val'))) == (10, 20) and '10 images of ' in whole.note and whole.note.split(';')[0].endswith(', not divided')
    assert whole.report['notes'] == [] and whole.fingerprint != spec.fingerprint
    (root/json_at).write_text(json.dumps(dict(coco(10), annotations=[dict(a, bbox=[5, 5, 0, 4]) if a['id'] == 1 else a for a in coco(10)['annotations']])))
    assert loaded(root, divide=False).report['left_out']['a box of no size'][0] == 1  # not once for each split


def test_two_splits_are_not_taken_whole(folder):
    with pytest.raises(ValueError, match='are two splits: to take all images'): load('auto', folder, divide=False)


def test_two_files_for_one_split(folder):
    shutil.copy(folder/'train.json', folder/'train_old.json')
    refused(folder, 'train', 'train_old', 'keep one')


def test_a_folder_within_a_folder(folder, tmp_path):
    "As archives unpack; what macOS adds does not count"
    shutil.move(folder, tmp_path/'zip/a/mine')
    (tmp_path/'zip/__MACOSX').mkdir()
    assert loaded(tmp_path/'zip').note.startswith('zip, COCO layout (a/mine/train.json, a/mine/val.json): 3 images of train')


def test_images_that_are_not_read(folder, yolo):
    "They are left out and counted, or refused where an annotation names one"
    Image.new('L', (40, 30)).save(folder/'images/9.gif')
    assert done(loaded(folder)) == {'an image of a kind that is not read (.gif; save it as JPEG or PNG)': 1}
    change(folder, lambda c: c['images'][1].update(file_name='9.gif'))
    refused(folder, '9.gif: it is a GIF; save it as JPEG or PNG')
    (yolo/'images/train/9.heic').write_bytes(b'x')
    (yolo/'labels/train/9.txt').write_text('0 .5 .5 .2 .2')
    assert done(loaded(yolo)) == {'an image of a kind that is not read (.heic; save it as JPEG or PNG)': 1}


def test_an_xml_of_an_image_that_is_not_read(tmp_path):
    for k in range(3):
        draw(tmp_path/f'flat/{k}.jpg')
        (tmp_path/f'flat/{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    (tmp_path/'flat/1.jpg').rename(tmp_path/'flat/1.heic')
    refused(tmp_path/'flat', '1.heic: images of this kind are not read')


def test_the_layout_is_named_with_its_reason(yolo, tmp_path):
    assert loaded(yolo).note.startswith('robo, YOLO layout (data.yaml): 4 images of train for training and 4 of val')
    (yolo/'data.yaml').unlink()
    assert loaded(yolo).note.startswith('robo, YOLO layout (labels/train, labels/val): 4 images')


def test_the_others_that_are_wrong_are_counted(folder, yolo, tmp_path):
    change(folder, lambda c: [a.update(bbox=None) for a in c['annotations'][1:4]])
    refused(folder, 'annotation 2', 'and 2 more wrong annotations')
    (yolo/'labels/train/0.txt').write_text('0 .5 .5 .2\n7 .5 .5 .2 .2\n0 .5 .5 .2 .2')
    (yolo/'labels/train/3.txt').write_text('x')
    refused(yolo, '0.txt, line 1', 'and 2 more wrong lines')
    for k in range(3):
        draw(tmp_path/f'flat/{k}.jpg')
        (tmp_path/f'flat/{k}.xml').write_text(XML.format(w=40, h=30, x='six'))
    refused(tmp_path/'flat', '0.xml, object 1', 'and 2 more wrong files')


def test_nothing_to_find(tmp_path):
    draw(tmp_path/'x/a.jpg')
    refused(tmp_path/'x', 'COCO: ', 'VOC: ', 'YOLO: data.yaml')


XML = ('<annotation><size><width>{w}</width><height>{h}</height></size><object><name>cat</name><bndbox><xmin>{x}</xmin><ymin>5</ymin>'
       '<xmax>20</xmax><ymax>15</ymax></bndbox></object></annotation>')


def test_voc_beside_the_images_and_without_splits(tmp_path):
    root = tmp_path/'robo'
    for split, n in (('train', 3), ('valid', 2)):
        for k in range(n):
            draw(root/f'{split}/{k}.jpg')
            (root/f'{split}/{k}.xml').write_text(XML.format(w=40, h=30, x=6 + k))
    spec = loaded(root)
    assert (spec.n_train, spec.n_val, spec.dataset, spec.classes) == (3, 2, 'voc', ('cat',))
    assert annotations(spec)[0]['bbox'] == [5, 4, 15, 11]
    other = tmp_path/'flat'
    for k in range(5):
        draw(other/f'JPEGImages/{k}.jpg')
        (other/'Annotations').mkdir(exist_ok=True)
        (other/f'Annotations/{k}.xml').write_text(XML.format(w=0, h=0, x=6))
    assert (loaded(other).n_train, loaded(other).n_val) == (4, 1)


def test_voc_boxes_in_parts_and_other_sizes(tmp_path):
    root = tmp_path/'flat'
    for k in range(5):
        draw(root/f'{k}.jpg')
        (root/f'{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    (root/'2.xml').write_text(XML.format(w=400, h=300, x=6))
    refused(root, '2.jpg is said to be 400x300', '40x30')
    for k in range(5): (root/f'{k}.xml').write_text(XML.format(w=40, h=30, x=.2).replace('>5<', '>.1<').replace('>20<', '>.5<').replace('>15<', '>.6<'))
    refused(root, 'between 0 and 1')


def test_two_images_of_one_stem(tmp_path):
    for kind in ('voc', 'yolo'):
        root = tmp_path/kind
        for name in ('a.jpg', 'a.png', 'b.jpg'): draw(root/name)
        for stem in 'ab': (root/f'{stem}.xml' if kind == 'voc' else root/f'{stem}.txt').write_text(XML.format(w=40, h=30, x=6) if kind == 'voc' else '0 .5 .5 .2 .2')
        refused(root, 'a.jpg and a.png')


@pytest.fixture
def yolo(tmp_path):
    "data.yaml, and images/ and labels/ with train and val; the second image of a split has no label file, the third an empty one"
    root = tmp_path/'robo'
    for split in ('train', 'val'):
        (root/f'labels/{split}').mkdir(parents=True)
        for k in range(4): draw(root/f'images/{split}/{k}.jpg')
        (root/f'labels/{split}/0.txt').write_text('1 0.5 0.5 0.25 0.4\n0 0.1 0.1 0.3 0.1 0.3 0.4\n')
        (root/f'labels/{split}/2.txt').write_text('')
        (root/f'labels/{split}/3.txt').write_text('0 0.25 0.5 0.5 1\r\n')
    (root/'data.yaml').write_text('train: ../train/images\nval: images/val\nnc: 2\nnames: [cat, dog]\n'.replace('../train/images', 'images/train'))
    return root


def test_yolo(yolo):
    spec = loaded(yolo)
    assert (spec.classes, spec.n_train, spec.n_val, spec.dataset, spec.has_masks) == (('cat', 'dog'), 4, 4, 'folder', False)
    box, polygon, last = annotations(spec)
    assert (box['bbox'], box['category_id'], last['bbox']) == ([15, 9, 10, 12], 2, [0, 0, 20, 30])
    assert polygon['bbox'] == pytest.approx([4, 3, 8, 9]) and polygon['segmentation'] == [pytest.approx([4, 3, 12, 3, 12, 12])]
    assert spec.report['found']['train']['without'] == 2
    assert load_samples(spec, 'train', 1)[0].texts == ['dog', 'cat']


@pytest.mark.parametrize('names', ['names: {0: cat, 1: dog}', 'names:\n  1: dog\n  0: cat', "names: ['cat', dog]"])
def test_yolo_names_and_paths(yolo, names):
    "Roboflow's paths are off by one folder, lists of files name images, a test split waits"
    (yolo/'val.txt').write_text('./images/val/0.jpg\nimages/val/3.jpg\n')
    for split in ('train', 'test'): shutil.copytree(yolo/'images/train', yolo/f'{split}/images')
    shutil.copytree(yolo/'labels/train', yolo/'train/labels')
    (yolo/'data.yaml').write_text(f'train: ../train/images\nval: val.txt\ntest: ../test/images\n{names}\n')
    spec = loaded(yolo)
    assert (spec.classes, spec.n_train, spec.n_val, len(annotations(spec)), len(annotations(spec, 'val'))) == (('cat', 'dog'), 4, 2, 3, 3)


def test_yolo_without_a_description(yolo):
    (yolo/'data.yaml').unlink()
    spec = loaded(yolo)
    assert (spec.classes, spec.n_train) == (('0', '1'), 4)
    (yolo/'classes.txt').write_text('cat\ndog\n')
    assert loaded(yolo).classes == ('cat', 'dog')


def test_yolo_in_one_folder(tmp_path):
    for k in range(10): draw(tmp_path/f'flat/{k}.JPG')
    for k in range(9): (tmp_path/f'flat/{k}.txt').write_text('0 .5 .5 .2 .2')
    (tmp_path/'flat/classes.txt').write_text('cat')
    spec = loaded(tmp_path/'flat')
    assert (spec.n_train, spec.n_val, spec.classes) == (8, 2, ('cat',))


@pytest.mark.parametrize('text, words', [
    ('2 .5 .5 .2 .2', ['line 1', 'no class 2', '0 to 1: cat, dog']), ('0 .5 .5 .2', ['line 1', '3 numbers']), ('0 .5 .5 .2 .2 .9', ['line 1', '5 numbers']),
    ('\n0 120 80 30 40', ['line 2', 'fractions of the image']), ('cat .5 .5 .2 .2', ['line 1', 'not a class and numbers']), ('0 .5 nan .2 .2', ['line 1', 'fractions of the image']),
    ('-1 .5 .5 .2 .2', ['line 1', 'no class -1']), ('0.5 .5 .5 .2 .2', ['line 1', 'no class 0.5'])])
def test_yolo_lines_refused(yolo, text, words):
    (yolo/'labels/train/0.txt').write_text(text)
    refused(yolo, 'labels/train/0.txt', *words)


def test_yolo_lines_left_out_and_mended(yolo):
    (yolo/'labels/train/0.txt').write_text('0 .5 .5 .2 .2\n0 .5 .5 .2 .2\n1 .5 .5 0 .2\n1 .9 .5 .4 .2\n')
    spec = loaded(yolo)
    assert done(spec) == {'the same object twice': 1, 'a box of no size': 1, 'a box left its image and was clipped': 1}


@pytest.mark.parametrize('text, words', [
    ('train: nowhere\nnames: [a]', ['train: nowhere does not exist']), ('train: images/train\nnames: 3', ['names must be a list']),
    ('train: /etc\nnames: [a]', ['/etc']), ('names: [a', ['data.yaml is not YAML']),
    ('train: {images: images/train}\nnames: [a]', ['train must be a path or a list of paths']),
    ('train: [[images/train]]\nnames: [a]', ['train must be a path or a list of paths'])])
def test_yolo_descriptions_refused(yolo, text, words):
    (yolo/'data.yaml').write_text(text)
    refused(yolo, 'data.yaml', *words)


def test_a_split_whose_objects_are_all_left_out(yolo):
    for file in (yolo/'labels/train').iterdir(): file.write_text('1 .5 .5 0 .2\n')
    count = len([*(yolo/'labels/train').iterdir()])
    refused(yolo, f'no image of the training split has an object, so there is nothing to learn. Left out: a box of no size: {count}')


def test_another_encoding_is_named(yolo):
    (yolo/'data.yaml').unlink()
    (yolo/'classes.txt').write_bytes('kätzchen\nhund'.encode('latin-1'))
    refused(yolo, 'classes.txt is not UTF-8')


@pytest.mark.parametrize('spoil, words', [
    (lambda root: shutil.rmtree(root/'labels/train'), ['no image of train has a label file', 'labels/train/0.txt']),
    (lambda root: [f.write_text('') for f in (root/'labels/val').iterdir()], ['validation split has an object']),
    (lambda root: (root/'data.yaml').write_text('train: images/train\nval: images/val\nnames: [cat, dog]\nkpt_shape: [2, 2]'), ['keypoints']),
    (lambda root: (root/'data.yaml').write_text('train: images/train\nval: images/val\nnames: [cat, dog]\nnc: 5'), ['nc is 5']),
    (lambda root: Image.fromarray(np.zeros((30, 40), np.float32)).save(root/'images/train/9.tif'), ['9.tif', '32 bits']),
    (lambda root: (root/'images/train/9.jpg').symlink_to(root/'nowhere'), ['9.jpg', 'does not exist'])])
def test_yolo_folders_refused(yolo, spoil, words):
    spoil(yolo)
    refused(yolo, *words)


def test_yolo_files_without_a_partner_are_named(yolo):
    (yolo/'labels/train/7.txt').write_text('0 .5 .5 .2 .2')
    notes = loaded(yolo).report['notes']
    assert any('train: 1 image without a label file' in n and 'train/1.txt' in n for n in notes)
    assert any('train: 1 label file without an image' in n and 'train/7.txt' in n for n in notes)


def test_what_is_behind_a_link_counts(yolo, tmp_path):
    shutil.move(yolo/'labels', tmp_path/'store')
    (yolo/'labels').symlink_to(tmp_path/'store')
    before = loaded(yolo)
    (tmp_path/'store/train/3.txt').write_text('1 0.25 0.5 0.5 0.9')
    after = loaded(yolo)
    assert before.fingerprint != after.fingerprint and annotations(after)[-1]['category_id'] == 2


# ---- as labelling tools write it

def test_annotation_ids_from_zero_do_not_spoil_ap(folder):
    "As Roboflow writes them; evaluators take a match with the ground truth 0 for none"
    from pisa.lab.evaluate import class_ap, precisions
    for split in ('train', 'val'): change(folder, lambda c: [a.update(id=k) for k, a in enumerate(c['annotations'])], split)
    spec = loaded(folder)
    found = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=.9) for a in annotations(spec, 'val')]
    assert class_ap(precisions(found, spec.val_json))[..., 0].mean() == pytest.approx(100)
    assert done(spec) == {'an annotation id was not a whole number above 0': 2}


@pytest.mark.parametrize('edit', [first(id='3f2a-b1'), lambda c: c['annotations'][0].pop('id'), first(category_id='1'), first(category_id=1.0),
                                  lambda c: [k.update(id=str(k['id'])) for k in c['categories']]])
def test_ids_of_other_kinds_train_and_evaluate(folder, edit):
    from faster_coco_eval import COCO
    for split in ('train', 'val'): change(folder, edit, split)
    spec = loaded(folder)
    assert done(spec) and len(annotations(spec)) == 6 and load_samples(spec, 'train', 1)[0].labels.tolist() == [0, 1]
    for split in ('train', 'val'):
        assert all(type(a[k]) is int and a[k] > 0 for a in annotations(spec, split) for k in ('id', 'image_id', 'category_id'))
        assert len(COCO(str(getattr(spec, f'{split}_json'))).getAnnIds()) == 6


def paint(file, colour):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (40, 30), colour).save(file)


@pytest.mark.parametrize('files, folders', [
    (('annotations/train.json', 'annotations/test.json'), ('train2014', 'test2014')),
    (('train.json', 'val.json'), ('train_images', 'val_images')),
    (('annotations/instances_Train.json', 'annotations/instances_Validation.json'), ('images/Train', 'images/Validation')),
    (('train/labels.json', 'val/labels.json'), ('train/data', 'val/data')),
    (('train/annotations/instances.json', 'val/annotations/instances.json'), ('train/images', 'val/images')),
    (('annotations/train.json', 'annotations/val.json'), ('data/train', 'data/val')),
    (('train/_annotations.coco.json', 'valid/_annotations.coco.json'), ('train', 'valid'))])
def test_images_of_the_same_names_in_each_split(tmp_path, files, folders):
    root = tmp_path/'mine'
    for file, where, colour in zip(files, folders, ('red', 'blue')):
        for k in range(3): paint(root/where/f'{k}.png', colour)
        (root/file).parent.mkdir(parents=True, exist_ok=True)
        content = coco()
        for i in content['images']: i['file_name'] = i['file_name'].replace('jpg', 'png')
        (root/file).write_text(json.dumps(content))
    paint(root/'extra/0.png', 'green')
    spec = loaded(root)
    assert spec.n_train == spec.n_val == 3 and not any('both splits' in n for n in spec.report['notes'])
    assert [load_samples(spec, s, 1)[0].image[0, 0].tolist() for s in ('train', 'val')] == [[255, 0, 0], [0, 0, 255]]


def test_two_folders_with_the_images(tmp_path):
    for name in ('small', 'large'):
        for k in range(3): draw(tmp_path/f'mine/{name}/{k}.jpg')
    (tmp_path/'mine/labels.json').write_text(json.dumps(coco()))
    refused(tmp_path/'mine', 'mine/large and in ', 'mine/small', 'take one of the two away')


@pytest.mark.parametrize('lists, train, val', [(('train', 'val', 'trainval'), 3, 2), (('train', 'val', 'trainval', 'test'), 5, 1), (('trainval', 'test'), 5, 1)])
def test_voc_lists(tmp_path, lists, train, val):
    "trainval goes with test; beside val, train is taken"
    of = dict(train='012', val='34', trainval='01234', test='5')
    root = tmp_path/'VOC2012'
    (root/'ImageSets/Main').mkdir(parents=True)
    (root/'Annotations').mkdir()
    for k in range(6):
        draw(root/f'JPEGImages/{k}.jpg')
        (root/f'Annotations/{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    for name in lists: (root/f'ImageSets/Main/{name}.txt').write_text('\n'.join(of[name]))
    spec = loaded(root)
    assert (spec.n_train, spec.n_val) == (train, val) and not any('both splits' in n for n in spec.report['notes'])


@pytest.mark.parametrize('xmls, images', [('annotations', 'images'), ('Annotations', 'images'), ('labels', 'data'), ('xml', 'JPEGImages'), ('.', '.')])
def test_voc_of_one_split(tmp_path, xmls, images):
    root = tmp_path/'mine'
    for k in range(6):
        draw(root/images/f'{k}.jpg')
        (root/xmls).mkdir(exist_ok=True)
        if k < 5: (root/xmls/(f'{k}.XML' if k == 1 else f'{k}.xml')).write_text(XML.format(w=40, h=30, x=6))
    if xmls == '.': (root/'config.xml').write_text('<config/>')
    if images == 'JPEGImages':
        (root/'ImageSets/Main').mkdir(parents=True)
        (root/'ImageSets/Main/default.txt').write_text('0')
    spec = loaded(root)
    assert (spec.n_train, spec.n_val, len(annotations(spec))) == (4, 1, 4)
    assert any('1 image without an XML file, left out' in n and '5.jpg' in n for n in spec.report['notes'])


@pytest.mark.parametrize('xmls, images', [('{}/annotations', '{}/images'), ('annotations/{}', 'images/{}'), ('{}', '{}')])
def test_voc_of_two_splits(tmp_path, xmls, images):
    root = tmp_path/'mine'
    for split, n in (('train', 3), ('val', 2)):
        for k in range(n):
            paint(root/images.format(split)/f'{k}.png', 'red' if split == 'train' else 'blue')
            (root/xmls.format(split)).mkdir(exist_ok=True, parents=True)
            (root/xmls.format(split)/f'{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    spec = loaded(root)
    assert (spec.n_train, spec.n_val) == (3, 2)
    assert [load_samples(spec, s, 1)[0].image[0, 0].tolist() for s in ('train', 'val')] == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize('folders', [('train', 'valid', 'test'), ('obj_Train_data', 'obj_Validation_data', 'obj_Test_data'),
                                     ('images/train', 'images/val', 'images/test'), ('train/images', 'val/images', 'test/images')])
@pytest.mark.parametrize('names', ['classes.txt', 'obj.names', 'data/obj.names', '{}/_darknet.labels', None])
def test_yolo_splits_by_folder(tmp_path, folders, names):
    "Labels beside the images; the test split waits"
    root = tmp_path/'mine'
    for where, n in zip(folders, (3, 2, 1)):
        for k in range(n):
            draw(root/where/f'{where[0]}{k}.jpg')
            (root/where/f'{where[0]}{k}.txt').write_text('0 .5 .5 .2 .2')
        if names:
            file = root/names.format(where)
            file.parent.mkdir(exist_ok=True)
            file.write_text('cat\n')
    spec = loaded(root)
    assert (spec.n_train, spec.n_val, spec.classes) == (3, 2, ('cat',) if names else ('0',))
    assert any('no data.yaml or classes.txt names the classes' in n for n in spec.report['notes']) == (not names)


def test_label_studio(tmp_path):
    "Its notes.json has categories; names beside the labels"
    root = tmp_path/'mine'
    for k in range(5):
        draw(root/f'images/{k}.jpg')
        (root/'labels').mkdir(exist_ok=True)
        (root/f'labels/{k}.txt').write_text('0 .5 .5 .2 .2')
    (root/'classes.txt').write_text('cat')
    (root/'notes.json').write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    (root/'2024.json').write_text('{}')
    assert loaded(root).classes == ('cat',)


def test_roboflow_names_its_root_category_as_the_class(folder):
    for split in ('train', 'val'): change(folder, lambda c: c['categories'].insert(0, dict(id=0, name='cat', supercategory='none')), split)
    spec = loaded(folder)
    assert spec.classes == ('cat', 'dog') and done(spec) == {'an unused category with the same name as another': 2}
    assert [a['category_id'] for a in annotations(spec)][:2] == [1, 2]


def test_a_category_of_the_validation_split_without_objects(folder):
    change(folder, lambda c: c['categories'].append(dict(id=3, name='cow')), 'val')
    assert loaded(folder).classes == ('cat', 'dog')
    change(folder, first(category_id=3), 'val')
    refused(folder, "val.json has the class 'cow', which", 'does not have')


def test_file_names_with_backslashes(folder):
    for k in range(3): shutil.move(draw(folder/f'images/{k}.jpg'), draw(folder/f'images/sub/{k}.jpg'))
    for split in ('train', 'val'): change(folder, lambda c: [i.update(file_name=f"sub\\{i['file_name']}") for i in c['images']], split)
    spec = loaded(folder)
    assert load_samples(spec, 'train', 1)[0].image.shape == (30, 40, 3)
    assert 'train.json: 3 file names with backslashes, read as slashes' in spec.report['notes']


def test_crowds_under_other_names(folder):
    change(folder, lambda c: (c['annotations'][0].update(iscrowd='1'), c['annotations'][1].update(ignore=1)))
    spec = loaded(folder)
    assert [a['iscrowd'] for a in annotations(spec)] == [1, 1, 0, 0, 0, 0] and sum(done(spec).values()) == 2


def test_the_area_of_a_clipped_box(folder):
    change(folder, first(bbox=[30, 4, 30, 8], area=240))
    assert annotations(loaded(folder))[0]['area'] == 80


def test_what_no_detector_trains_on_is_told(folder):
    change(folder, first(bbox=[5, 4, .6, 8]))
    assert any(n.startswith("train: 1 object of less than a pixel") for n in loaded(folder).report['notes'])


@pytest.mark.parametrize('scale, empty_too, n', [('mini', False, 4), ('mini', True, 5), ('paper', False, 3), ('paper', True, 4)])
def test_the_schedule_counts_the_images_that_mmdet_trains_on(tmp_path, scale, empty_too, n):
    "Five images: one is empty, one is narrow, one has a crowd alone"
    pytest.importorskip('mmdet')
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules
    from pisa.lab.config import config, images_to_train_on
    from pisa.lab.experiments import experiment
    register_all_modules()
    root, content = tmp_path/'mine', coco(5)
    for k in range(5): draw(root/f'images/{k}.jpg', (40, 31 if k == 4 else 40))
    for i in content['images']: i['height'] = 31 if i['id'] == 5 else 40
    content['annotations'] = [a | {'iscrowd': int(a['image_id'] == 3)} for a in content['annotations'] if a['image_id'] != 2]
    for split in ('train', 'val'): (root/f'{split}.json').write_text(json.dumps(content))
    given = 'train_cfg.max_epochs=10 train_dataloader.batch_size=1' + ' train_dataloader.dataset.filter_cfg.filter_empty_gt=False'*empty_too
    spec, exp = loaded(root), experiment('retinanet', dataset='folder', scale=scale, overrides=given, pretrained='none')
    cfg = config(exp, spec)
    decay = next(s for s in cfg.param_scheduler if s.type == 'MultiStepLR')
    assert images_to_train_on(exp, spec) == len(DATASETS.build(cfg.train_dataloader.dataset)) == n
    assert decay.end == 10*n


def test_images_without_objects_are_divided_by_themselves(tmp_path):
    "Two of twenty have objects: one for each split"
    root, content = tmp_path/'mine', coco(20)
    for k in range(20): draw(root/f'images/{k}.jpg')
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in (7, 13)]
    (root/'all.json').write_text(json.dumps(content))
    spec = loaded(root)
    assert [len({a['image_id'] for a in annotations(spec, split)}) for split in ('train', 'val')] == [1, 1]
    assert (spec.n_train, spec.n_val) == (16, 4)


def test_tiffs(folder):
    pytest.importorskip('cv2')
    import cv2
    for k, how in enumerate([dict(compression='tiff_lzw'), dict(compression='tiff_adobe_deflate'), {}]):
        file = draw(folder/f'images/{k}.tif', **how)
        assert cv2.imread(str(file)) is not None
    change(folder, lambda c: [i.update(file_name=i['file_name'].replace('jpg', 'tif')) for i in c['images']])
    assert loaded(folder).n_train == 3
    turn(folder/'images/1.tif', 6)
    refused(folder, '1.tif', 'it is a TIFF with a rotation')


@pytest.mark.parametrize('size', [(5000, 1), (1, 5000)])
def test_an_image_that_would_vanish(folder, size):
    draw(folder/'images/1.jpg', size)
    change(folder, lambda c: c['images'][1].update(width=size[0], height=size[1]))
    refused(folder, '1.jpg', 'one side is more than 100 times the other')


def test_folders_behind_links(yolo, tmp_path):
    shutil.move(yolo/'images/train', tmp_path/'store')
    (yolo/'images/train').mkdir()
    (yolo/'images/train/more').symlink_to(tmp_path/'store')
    (yolo/'labels/train').rename(tmp_path/'labels')
    (yolo/'labels/train').mkdir()
    (yolo/'labels/train/more').symlink_to(tmp_path/'labels')
    spec = loaded(yolo)
    assert spec.n_train == 4 and len(annotations(spec)) == 3


def test_the_other_layout_is_named(yolo):
    for k in range(4): (yolo/f'images/train/{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    for k in range(4): (yolo/f'images/val/{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    assert 'the folder also has files of YOLO, which are not read: VOC is' in loaded(yolo).report['notes']


@pytest.mark.parametrize('text', ['names: [yes, no]', 'names: [cat, dog]\ntrain_count: 3\nval_ratio: 0.2', 'names: [cat, dog]\nnc:', "names: [cat, dog]\nnc: '2'",
                                  'names: [cat, dog]\ndate: 2024-13-45', 'names: [cat, dog]\npath: /content/ds'])
def test_yolo_descriptions_that_are_right(yolo, text):
    (yolo/'data.yaml').write_text(f'train: /content/ds/images/train\nval: ../images/val\n{text}\n')
    assert loaded(yolo).classes == (('yes', 'no') if 'yes' in text else ('cat', 'dog'))


@pytest.mark.parametrize('spoil, words', [
    (lambda root: change(root, first(segmentation=dict(size=5, counts='x'))), ['annotation 1', 'run lengths cannot be read']),
    (lambda root: change(root, first(segmentation=dict(size=[30, 40], counts=[5, 5]))), ['annotation 1', 'they cover 10 pixels of 1200']),
    (lambda root: change(root, first(segmentation=dict(size=[30, 40], counts=[-5, 1205]))), ['annotation 1', 'run lengths']),
    (lambda root: change(root, first(segmentation=dict(size=[30, 40], counts=['a', 'b']))), ['annotation 1', 'run lengths']),
    (lambda root: change(root, first(segmentation=dict(size=[30, 40], counts='hello wörld'))), ['annotation 1', 'run lengths']),
    (lambda root: change(root, first(bbox=[1, 2, 10**400, 4])), ['annotation 1', 'far too large']),
    (lambda root: (root/'train.json').write_text('['*100_000), ['train.json is not JSON']),
    (lambda root: change(root, lambda c: c['images'][0].update(file_name='x'*300)), ['train.json', 'not a valid file name']),
    (lambda root: change(root, lambda c: c['images'][0].update(file_name='x\ny')), ['train.json', 'not a valid file name'])])
def test_what_used_to_be_a_traceback(folder, spoil, words):
    spoil(folder)
    refused(folder, *words)


def test_folders_named_as_files(folder):
    (folder/'x.json').mkdir()
    (folder/'x.xml').mkdir()
    assert loaded(folder).n_train == 3


@pytest.mark.parametrize('encoding', ['gbk', 'foo'])
def test_xml_of_another_encoding(tmp_path, encoding):
    for k in range(3):
        draw(tmp_path/f'flat/{k}.jpg')
        (tmp_path/f'flat/{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    (tmp_path/'flat/1.xml').write_text(f'<?xml version="1.0" encoding="{encoding}"?>' + XML.format(w=40, h=30, x=6))
    refused(tmp_path/'flat', '1.xml', 'save it as UTF-8')


@pytest.mark.parametrize('xmls, images, others', [
    ('annotations/xmls', 'images', ['annotations/trimaps']), ('annotations', 'images', ['Masks']), ('xml', 'train_images', ['overlay']), ('annotations', 'images', ['.'])])
def test_other_pictures_of_the_same_names(tmp_path, xmls, images, others):
    root = tmp_path/'pets'
    for k in range(6):
        paint(root/images/f'{k}.png', 'red')
        for where in others:
            if where != '.' or k == 0: paint(root/where/f'{k}.png', 'blue')
        (root/xmls).mkdir(exist_ok=True, parents=True)
        (root/xmls/f'{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    assert load_samples(loaded(root), 'train', 1)[0].image[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize('xmls, images', [
    (('train_annotations', 'val_annotations'), ('train_images', 'val_images')), (('annots_train', 'annots_val'), ('images_train', 'images_val')),
    (('train_xml', 'val_xml'), ('train', 'val')), (('annotations/train', 'annotations/val'), ('train', 'val')),
    (('train/annotations/xmls', 'val/annotations/xmls'), ('train/images', 'val/images')), (('train_labels', 'val_labels'), ('images/train', 'images/val'))])
def test_voc_splits_with_images_of_the_same_names(tmp_path, xmls, images):
    root = tmp_path/'mine'
    for where, files, colour in zip(images, xmls, ('red', 'blue')):
        for k in range(3):
            paint(root/where/f'{k}.png', colour)
            (root/files).mkdir(exist_ok=True, parents=True)
            (root/files/f'{k}.xml').write_text(XML.format(w=40, h=30, x=6))
    spec = loaded(root)
    assert [load_samples(spec, s, 1)[0].image[0, 0].tolist() for s in ('train', 'val')] == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize('files, folders, others', [
    (['train', 'val'], ['images', 'images'], ['train_crops', 'masks_train']), (['train', 'val'], ['training', 'validation'], ['preview']),
    (['val', 'train'], ['images/valid', 'images/train'], []), (['train'], ['train'], ['test', 'test/images']),
    (['train', 'val'], ['train', 'val'], ['train_masks', 'val_masks']), (['train', 'val'], ['images/train', 'images/val'], ['labels/train', 'masks/val'])])
def test_coco_files_and_other_folders(tmp_path, files, folders, others):
    root, colours = tmp_path/'mine', dict(train='red', val='blue')
    for file, where in zip(files, folders):
        content = coco()
        for i in content['images']: i['file_name'] = f"{file if where == 'images' else ''}{i['file_name']}".replace('jpg', 'png')
        for i in content['images']: paint(root/where/i['file_name'], colours[file])
        for i in content['images']:
            for other in others: paint(root/other/i['file_name'], 'green')
        (root/f'{file}.json').write_text(json.dumps(content))
    spec = loaded(root)
    wanted = dict(red=[255, 0, 0], blue=[0, 0, 255])
    for split in files: assert load_samples(spec, split, 1)[0].image[0, 0].tolist() == wanted[colours[split]]


def test_yolo_with_a_coco_file_for_evaluation(yolo):
    "As YOLOv5 lays COCO out"
    (yolo/'annotations').mkdir()
    content = coco(4)
    (yolo/'annotations/instances_val.json').write_text(json.dumps(content))
    spec = loaded(yolo)
    assert 'YOLO layout' in spec.note and (spec.n_train, spec.n_val) == (4, 4)
    assert 'the folder also has files of COCO, which are not read: YOLO is' in spec.report['notes']
    (yolo/'annotations/instances_val.json').write_text('{"images": [{}]}')
    assert any(n.startswith('COCO is not read: ') for n in loaded(yolo).report['notes'])


@pytest.mark.parametrize('where, lists', [('data/obj', ('data/train.txt', 'data/test.txt')), ('obj_train_data', ('train.txt', 'valid.txt')), ('images', ('train.txt', 'val.txt'))])
def test_yolo_lists(tmp_path, where, lists):
    root = tmp_path/'mine'
    for k in range(5):
        draw(root/where/f'{k}.jpg')
        (root/where.replace('images', 'labels')).mkdir(exist_ok=True, parents=True)
        (root/where.replace('images', 'labels')/f'{k}.txt').write_text('0 .5 .5 .2 .2')
    for name, numbers in zip(lists, ('034', '12')): (root/name).write_text('\n'.join(f'x/{where}/{k}.jpg' for k in numbers))
    spec = loaded(root)
    assert [[i['file_name'][-5:] for i in read_json(f)['images']] for f in (spec.train_json, spec.val_json)] == [['0.jpg', '3.jpg', '4.jpg'], ['1.jpg', '2.jpg']]
    assert not any('label file without an image' in n for n in spec.report['notes'])


def test_yolo_folders_of_no_split_are_told(yolo):
    (yolo/'data.yaml').unlink()
    draw(yolo/'images/extra/8.jpg')
    (yolo/'labels/extra').mkdir()
    (yolo/'labels/extra/8.txt').write_text('0 .5 .5 .2 .2')
    assert any(n.startswith('1 image in folders of no split that is used') for n in loaded(yolo).report['notes'])


@pytest.mark.parametrize('where', ['data.yaml', 'data/data.yaml', 'my.yaml'])
def test_yolo_descriptions_elsewhere(yolo, where):
    "Also without splits; a yaml of another tool beside it"
    (yolo/'data.yaml').unlink()
    (yolo/'README.md').write_text('x')
    (yolo/'args.yaml').write_text('names: [x]\nlr: 1')
    (yolo/where).parent.mkdir(exist_ok=True)
    (yolo/where).write_text('train: ../images/train\nval: ../images/val\nnames: [cat, dog]\nnc: 2.0')
    assert loaded(yolo).classes == ('cat', 'dog')
    (yolo/'args.yaml').unlink()
    (yolo/where).write_text('names: [cat, dog]')
    assert (loaded(yolo).classes, loaded(yolo).n_train) == (('cat', 'dog'), 4)


def test_a_path_is_not_shortened_to_another_split(yolo):
    (yolo/'data.yaml').write_text('train: ../training_set/images\nval: ../valid/images\nnames: [cat, dog]')
    refused(yolo, 'data.yaml: train: ../training_set/images does not exist')


@pytest.mark.parametrize('images, labels', [('Images', 'Labels'), ('train_images', 'train_labels'), ('train/img', 'train/labels')])
def test_yolo_folders_of_other_names(tmp_path, images, labels):
    root = tmp_path/'mine'
    for k in range(5):
        draw(root/images/f'{k}.jpg')
        (root/labels).mkdir(exist_ok=True, parents=True)
        (root/labels/f'{k}.txt').write_text('0 .5 .5 .2 .2')
    assert len(annotations(loaded(root))) == 4


def test_two_lists_of_classes(yolo):
    (yolo/'data.yaml').unlink()
    (yolo/'classes.txt').write_text('cat\ndog')
    (yolo/'labels/train/classes.txt').write_text('dog\ncat')
    refused(yolo, 'classes.txt', 'name the classes differently')


def test_a_competition_has_no_annotations_to_test_on(folder):
    change(folder, lambda c: c.pop('annotations'), 'val')
    (folder/'val.json').rename(folder/'test.json')
    spec = loaded(folder)
    assert (spec.n_train, spec.n_val) == (2, 1) and ' divided into ' in spec.note


# ---- remembered, and shown

def test_remembered_until_a_file_changes(folder, monkeypatch):
    spec, looked = loaded(folder), []
    monkeypatch.setattr(data, 'look_all', lambda *args: looked.append(args) or pytest.fail('looked again'))
    assert loaded(folder) == spec and not looked
    monkeypatch.undo()
    monkeypatch.setenv('PISA_DATA', str(folder.parent/'cache'))
    change(folder, first(bbox=[6, 4, 10, 8]))
    assert loaded(folder).fingerprint != spec.fingerprint


def test_check_prints_what_a_training_shows(folder, capsys):
    change(folder, first(bbox=[5, 4, 0, 8]))
    spec = data.check(folder)
    out = capsys.readouterr().out
    assert all(w in out for w in ('COCO layout', 'cat', 'dog', 'left out', 'a box of no size', 'annotation 1'))
    table = data.found_table(spec)
    assert table.loc['cat', ('train', 'objects')] == 2 and table.loc['(all)', ('val', 'objects')] == 6



# ---- from a shell

def test_the_command_prints_the_tables_or_one_line(folder):
    def pisa_check(*words):
        p = subprocess.run([sys.executable, '-c', 'from pisa.lab.data import main; main()', *map(str, words)], capture_output=True, text=True)
        return p.returncode, p.stdout, p.stderr
    code, out, _ = pisa_check(folder)
    assert code == 0 and 'train: ' in out and 'objects' in out
    (folder/'train.json').write_text('{')
    code, out, said = pisa_check(folder)
    assert code == 1 and not out and said.count('\n') == 1 and 'train.json' in said, said
    code, _, said = pisa_check('~nobody-of-this-name/x')
    assert code == 1 and said.count('\n') == 1
    for words in ((), ('--help',)): assert pisa_check(*words)[0] == 1 and 'usage: pisa_check FOLDER' in pisa_check(*words)[2]


# ---- through the notebook

def test_the_training_notebook_takes_a_folder(yolo, tmp_path):
    "It says what is in it and what was done to it, and shows AP by class and the confusion of classes"
    pytest.importorskip('mmdet')
    from notebooks import log, papermill, pictures
    (yolo/'labels/train/3.txt').write_text('0 0.25 0.5 0.5 1\n0 0.25 0.5 0.5 1\n')
    text = log(papermill('train', tmp_path/'out.ipynb', data_root=yolo, runs_dir=tmp_path/'runs', overrides='train_cfg.max_epochs=1', precision='float32'))
    assert 'YOLO layout' in text and 'train: 4 images, 2 of them without an object' in text and 'the same object twice' in text
    run, = (tmp_path/'runs').glob('faster_rcnn-pisa-folder-s0-*')
    assert (run/'metrics.json').exists() and pictures(tmp_path/'out.ipynb') == 4  # images, losses, confusion, detections
