"pisa.lab.evaluate: the same numbers as pycocotools and mmdet, and what happens at the edges"
import copy, json, zipfile
import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from refusal import refused
from pisa.lab.data import load
from pisa.lab.evaluate import class_ap, coco_ap, coco_matches, confusion, pr_curves, precisions, write_results
from pisa.lab.files import read_json, write_json
from pisa.lab.metric import COCOAP, to_coco, voc_ap

NAMES = ['AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L']


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PISA_DATA', str(tmp_path_factory.mktemp('cache')))
        yield load('shapes', n_train=1, n_val=40)


def _detections(gt, rng, masks=True):
    "Ground truth moved by chance, some of the wrong class, some where nothing is, ties among the scores"
    out = []
    for a in gt['annotations']:
        mask = rle.decode(a['segmentation'])
        for _ in range(rng.randint(0, 4)):
            d = rng.randint(-4, 5, 4)
            moved = np.roll(mask, rng.randint(-3, 4, 2), (0, 1))
            code = rle.encode(np.asfortranarray(moved))
            x, y, w, h = a['bbox']
            out.append(dict(image_id=a['image_id'], category_id=a['category_id'] if rng.rand() < .85 else rng.randint(1, 9),
                            bbox=[float(x + d[0]), float(y + d[1]), float(max(w + d[2], 1)), float(max(h + d[3], 1))],
                            score=round(rng.rand(), 2), segmentation=dict(size=[128, 128], counts=code['counts'].decode())))
    return [{k: (int(v) if k.endswith('_id') else v) for k, v in d.items()} for d in out]


def _evaluated(detections, file, kind, limits):
    "pycocotools"
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    gt = COCO(str(file))
    dets = [{k: v for k, v in d.items() if k != ('bbox' if kind == 'segm' else 'segmentation')} for d in copy.deepcopy(detections)]
    ev = COCOeval(gt, gt.loadRes(dets), kind)
    ev.params.areaRng = [[0, 1e10], [0, limits[0]], [limits[0], limits[1]], [limits[1], 1e10]]
    ev.evaluate(); ev.accumulate(); ev.summarize()
    return ev


def _reference(detections, file, kind, limits):
    return [None if v == -1 else 100*v for v in _evaluated(detections, file, kind, limits).stats[:6]]


@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.parametrize('limits', [(256, 1024), (100, 700), (1024, 9216)])
@pytest.mark.parametrize('crowd', [False, True])
def test_against_pycocotools(spec, tmp_path, seed, limits, crowd):
    rng, gt = np.random.RandomState(seed), read_json(spec.val_json)
    if crowd:
        for a in gt['annotations']: a['iscrowd'] = int(rng.rand() < .15)
    gt['annotations'] = [a for a in gt['annotations'] if a['category_id'] != 3 and a['image_id'] != 5]  # a class and an image without objects
    file, dets = write_json(tmp_path/'gt.json', gt), _detections(read_json(spec.val_json), rng)
    got = coco_ap(dets, file, ('bbox', 'segm'), limits)
    for kind, prefix in (('bbox', ''), ('segm', 'mask_')):
        for name, ref in zip(NAMES, _reference(dets, file, kind, limits)):
            assert got[prefix + name] == (None if ref is None else pytest.approx(ref, abs=1e-6)), (kind, name)
    assert 5 < got['AP'] < 95


def test_many_detections_of_one_class(spec):
    "Of more than 100 in an image and class the highest-scored 100 count"
    gt = read_json(spec.val_json)
    a = gt['annotations'][0]
    dets = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=.1)]
    dets += [dict(dets[0], bbox=[0., 0., 3., 3.], score=.2 + .001*i) for i in range(120)]
    ref = _reference(dets, spec.val_json, 'bbox', (256, 1024))
    assert coco_ap(dets, spec.val_json, area_limits=(256, 1024))['AP'] == pytest.approx(ref[0], abs=1e-6) == 0


def test_truth_nothing_and_input_unchanged(spec):
    gt = read_json(spec.val_json)
    truth = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], segmentation=a['segmentation'], score=.5)
             for a in gt['annotations']]
    before = copy.deepcopy(truth)
    full = coco_ap(truth, spec.val_json, ('bbox', 'segm'), spec.area_limits)
    assert list(full) == NAMES + ['mask_' + n for n in NAMES]
    assert list(full.values()) == pytest.approx([100]*12)
    assert truth == before
    assert set(coco_ap([], spec.val_json, ('bbox', 'segm'), spec.area_limits).values()) == {0.}
    assert coco_ap(truth, spec.val_json)['AP_L'] is None
    json.dumps(full, allow_nan=False)


def test_no_ground_truth_at_all(spec, tmp_path):
    gt = read_json(spec.val_json)
    file = write_json(tmp_path/'gt.json', dict(gt, annotations=[]))
    det = dict(image_id=1, category_id=1, bbox=[0, 0, 5, 5], score=.5)
    assert set(coco_ap([det], file).values()) == set(coco_ap([], file).values()) == {None}


def test_order_does_not_matter(spec):
    rng, gt = np.random.RandomState(0), read_json(spec.val_json)
    dets = _detections(gt, rng)
    for i, d in enumerate(dets): d['score'] += i*1e-5  # without ties
    assert coco_ap(dets[::-1], spec.val_json) == pytest.approx(coco_ap(dets, spec.val_json), nan_ok=True)


@pytest.mark.parametrize('change, kinds, message', [
    (dict(image_id=999), ['bbox'], 'image_id 999'), (dict(category_id=0), ['bbox'], 'category_id 0'),
    (dict(score=float('nan')), ['bbox'], 'diverged'), (dict(score=float('inf')), ['bbox'], 'diverged'),
    ({}, ['segm'], "has no 'segmentation'"), ({}, ['mask'], 'iou_type')])
def test_errors(spec, change, kinds, message):
    det = dict(image_id=1, category_id=1, bbox=[0, 0, 5, 5], score=.5)
    with pytest.raises(ValueError, match=message) as e: coco_ap([det | change], spec.val_json, kinds)
    assert '\n' not in str(e.value)


def test_masks_asked_of_boxes(spec, tmp_path):
    gt = read_json(spec.val_json)
    for a in gt['annotations']: del a['segmentation']
    file = write_json(tmp_path/'gt.json', gt)
    with pytest.raises(ValueError, match='objects without a mask'): coco_ap([], file, ['segm'])
    assert coco_ap([], file)['AP'] == 0


def test_curves(spec):
    dets = _detections(read_json(spec.val_json), np.random.RandomState(0))
    p = precisions(dets, spec.val_json)
    curves = pr_curves(p)
    assert p.shape == (10, 101, 8, 4) and curves.shape == (10, 101)
    assert 100*curves.mean() == pytest.approx(coco_ap(dets, spec.val_json)['AP'])
    assert (np.diff(curves, axis=1) <= 1e-12).all()  # interpolated precision never rises


def test_ap_of_a_class(spec, tmp_path):
    "Against pycocotools, which is asked for one class and one size at a time"
    gt = read_json(spec.val_json)
    gt['annotations'] = [a for a in gt['annotations'] if a['category_id'] != 3]
    file, dets = write_json(tmp_path/'gt.json', gt), _detections(read_json(spec.val_json), np.random.RandomState(0))
    got, ref = class_ap(precisions(dets, file, area_limits=spec.area_limits)), _evaluated(dets, file, 'bbox', spec.area_limits).eval['precision']
    assert got.shape == (10, 8, 4) and np.isnan(got[:, 2]).all() and not np.isnan(got[:, :2]).any()
    for t in (0, 5, 9):
        for c in (0, 1, 3, 7):
            for area in range(4): assert got[t, c, area] == pytest.approx(100*ref[t, :, c, area, 2].mean(), abs=1e-6)


# ---- VOC

def _voc_gt(seed, n_images=25, n_classes=4):
    "Crowded images: objects of whole pixels that overlap each other, a third of them difficult; no object of the last class is not"
    rng = np.random.RandomState(seed)
    objects, dets = [], []
    for image in range(1, n_images + 1):
        for _ in range(rng.randint(0, 7)):
            x, y, w, h = *rng.randint(0, 20, 2), *rng.randint(8, 30, 2)
            c = rng.randint(1, n_classes + 1)
            hard = int(c == n_classes or rng.rand() < .33)
            objects.append(dict(id=len(objects) + 1, image_id=image, category_id=int(c), bbox=[int(v) for v in (x, y, w, h)], area=int(w*h), iscrowd=hard, difficult=hard))
            for _ in range(rng.randint(0, 4)):
                box = np.maximum([x, y, w, h] + rng.randint(-5, 6, 4), [-9, -9, 1, 1])
                dets.append(dict(image_id=image, category_id=int(c), bbox=box.tolist(), score=0))
    for d, s in zip(dets, rng.permutation(len(dets))): d['score'] = float(s)/len(dets)
    return dict(images=[dict(id=i) for i in range(1, n_images + 1)], annotations=objects, categories=[dict(id=i, name=str(i)) for i in range(1, n_classes + 1)]), dets


def _devkit(dets, objects):
    "One class, by loops: pixels are counted from 1 and both ends are inside"
    def corners(b): return b[0] + 1, b[1] + 1, b[0] + b[2], b[1] + b[3]
    def overlap(a, b):
        w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
        area = [(c[2] - c[0] + 1)*(c[3] - c[1] + 1) for c in (a, b)]
        return w*h/(sum(area) - w*h) if w > 0 and h > 0 else 0
    taken, tp, fp, points = set(), 0, 0, []
    n = sum(not o['difficult'] for o in objects)
    for d in sorted(dets, key=lambda d: -d['score']):
        most, mine = 0, None
        for o in objects:
            if o['image_id'] == d['image_id'] and (v := overlap(corners(d['bbox']), corners(o['bbox']))) > most: most, mine = v, o
        if most >= .5 and mine['difficult']: continue
        if most >= .5 and mine['id'] not in taken:
            taken.add(mine['id'])
            tp += 1
        else: fp += 1
        points.append((tp/n, tp/(tp + fp)))
    return 100*sum(max([p for r, p in points if r >= t], default=0) for t in np.linspace(0, 1, 11))/11


def _of_images(dets, gt): return [(i['id'], [d for d in dets if d['image_id'] == i['id']]) for i in gt['images']]


@pytest.mark.parametrize('seed', range(4))
def test_voc_against_loops(tmp_path, seed):
    gt, dets = _voc_gt(seed, n_images=40)
    want = [_devkit(*([r for r in rows if r['category_id'] == c] for rows in (dets, gt['annotations']))) for c in (1, 2, 3)]
    assert voc_ap(_of_images(dets, gt), write_json(tmp_path/'gt.json', gt)) == pytest.approx(np.mean(want), abs=1e-4)  # mmdet computes in float32


def test_voc_truth_and_nothing(tmp_path):
    gt, dets = _voc_gt(2)
    file, truth = write_json(tmp_path/'gt.json', gt), [dict(a, score=.5) for a in gt['annotations']]
    assert voc_ap(_of_images(truth, gt), file) == pytest.approx(100, abs=1e-4) and voc_ap(_of_images([], gt), file) == 0
    assert voc_ap(_of_images(dets, gt), write_json(tmp_path/'none.json', dict(gt, annotations=[]))) is None


# ---- the metric of mmengine

def _sample(gt, image_id, as_tensor=True, masks=True):
    found = [a for a in gt['annotations'] if a['image_id'] == image_id]
    boxes = np.array([a['bbox'] for a in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    inst = dict(bboxes=boxes, scores=np.full(len(found), .5, np.float32), labels=np.array([a['category_id']//7 - 1 for a in found], int))
    if masks: inst['masks'] = np.array([rle.decode(a['segmentation']) for a in found], bool).reshape(-1, 128, 128)
    if as_tensor: inst = {k: torch.from_numpy(v) for k, v in inst.items()}
    return dict(img_id=image_id, pred_instances=inst)


@pytest.fixture
def gapped(spec, tmp_path):
    "Category ids 7, 14, ... : a label is a position, not an id"
    gt = read_json(spec.val_json)
    for c in gt['categories']: c['id'] *= 7
    for a in gt['annotations']: a['category_id'] *= 7
    gt['annotations'] = [a for a in gt['annotations'] if a['image_id'] != 2]
    return gt, write_json(tmp_path/'gt.json', gt)


@pytest.mark.parametrize('as_tensor', [True, False])
def test_metric(gapped, spec, as_tensor):
    from mmdet.registry import METRICS
    gt, file = gapped
    metric = METRICS.build(dict(type='COCOAP', ann_file=str(file), iou_types=['bbox', 'segm'], area_limits=list(spec.area_limits)))
    for i in range(1, 41, 8): metric.process(None, [_sample(gt, k, as_tensor) for k in range(i, i + 8)])
    assert len(metric.results) == 40  # one entry an image, the empty one too
    result = metric.evaluate(40)
    assert list(result.values()) == pytest.approx([100]*12, abs=1e-6)
    assert len(metric.detections) == len(gt['annotations'])
    assert coco_ap(json.loads(json.dumps(metric.detections)), file, ('bbox', 'segm'), spec.area_limits) == pytest.approx(result)
    assert metric.results == []


def test_metric_without_detections(gapped):
    metric = COCOAP(gapped[1], prefix='val')
    metric.process(None, [_sample(dict(annotations=[]), k, masks=False) for k in range(1, 41)])
    result = metric.evaluate(40)
    assert result['val/AP'] == 0 and result['val/AP_L'] is None and metric.detections == []


def test_metric_errors(gapped, tmp_path):
    with pytest.raises(ValueError, match='iou_types'): COCOAP(gapped[1], iou_types=['mask'])
    with pytest.raises(FileNotFoundError): COCOAP(tmp_path/'none.json')


def test_to_coco_boxes():
    inst = dict(bboxes=torch.tensor([[1., 2., 4., 8.]], requires_grad=True), scores=torch.tensor([.25]), labels=torch.tensor([1]))
    assert to_coco(inst, 3, [5, 9]) == [dict(image_id=3, category_id=9, bbox=[1, 2, 3, 6], score=.25)]


def test_metric_of_some_images_asks_for_these_only(gapped, spec):
    "A split that is cut (`dataset.indices`) is not charged with the objects of the images that were never looked at"
    gt, file = gapped
    metric = COCOAP(file, area_limits=spec.area_limits)
    metric.process(None, [_sample(gt, k, masks=False) for k in range(1, 11)])
    assert metric.evaluate(10)['AP'] == pytest.approx(100)
    assert coco_ap(metric.detections, file)['AP'] < 50


@pytest.mark.parametrize('voc', [False, True])
def test_metric_of_voc(tmp_path, voc):
    gt, dets = _voc_gt(3)
    file = write_json(tmp_path/'gt.json', gt)
    metric = COCOAP(file, voc=voc)
    for i in gt['images'][:15]:
        mine = [d for d in dets if d['image_id'] == i['id']]
        boxes = np.array([d['bbox'] for d in mine], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        metric.process(None, [dict(img_id=i['id'], pred_instances=dict(bboxes=boxes, scores=np.array([d['score'] for d in mine]),
                                                                        labels=np.array([d['category_id'] - 1 for d in mine], int)))])
    result = metric.evaluate(15)
    assert list(result) == NAMES + ['AP_VOC']*voc
    if voc: assert result['AP_VOC'] == pytest.approx(voc_ap(_of_images(dets, gt)[:15], file), abs=1e-9)


# ---- test-dev

@pytest.fixture
def info(gapped, tmp_path):
    "As COCO publishes it: images and categories, no annotations"
    gt = {k: v for k, v in gapped[0].items() if k != 'annotations'}
    return gapped[0], write_json(tmp_path/'image_info_test-dev2017.json', gt)


def test_metric_without_annotations(info):
    gt, file = info
    metric = COCOAP(file, iou_types=['bbox', 'segm'], voc=True)
    for k in range(1, 41): metric.process(None, [_sample(gt, k)])
    assert metric.evaluate(40) == {}
    assert [d['category_id'] for d in metric.detections] == [a['category_id'] for a in sorted(gt['annotations'], key=lambda a: a['image_id'])]
    refused(lambda: coco_ap(metric.detections, file), 'image_info_test-dev2017.json has images and no annotations')


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_results_for_the_server(info, spec, tmp_path, kind):
    "What is in the zip is what went in, in COCO's format, and pycocotools takes it"
    from pycocotools.coco import COCO
    gt, file = info
    dets = _detections(read_json(spec.val_json), np.random.RandomState(0))
    for d in dets: d.update(category_id=d['category_id']*7, score=d['score'] + 1/3e6, bbox=[v + 1/3 for v in d['bbox']])
    before = copy.deepcopy(dets)
    out = write_results(dets, file, tmp_path/'new'/'folder', 'pisa_r50', kind)
    stem = 'detections_test-dev2017_pisa_r50_results'
    assert dets == before and sorted(f.name for f in out.parent.iterdir()) == [stem + '.json', stem + '.zip']
    with zipfile.ZipFile(out) as z: assert z.namelist() == [stem + '.json'] and z.read(stem + '.json') == out.with_suffix('.json').read_bytes()
    sent = read_json(out.with_suffix('.json'))
    assert {tuple(sorted(d)) for d in sent} == {tuple(sorted(['image_id', 'category_id', 'score', dict(bbox='bbox', segm='segmentation')[kind]]))}
    assert all(type(d['image_id']) is int and type(d['category_id']) is int for d in sent) and max(len(str(d['score'])) for d in sent) <= 7
    for a, b in zip(sent, dets, strict=True):
        assert (a['image_id'], a['category_id']) == (b['image_id'], b['category_id']) and 0 < abs(a['score'] - b['score']) < 1e-5
        if kind == 'segm': assert a['segmentation'] == b['segmentation']
        else: assert a['bbox'] == pytest.approx(b['bbox'], abs=.005) and max(len(str(v)) for v in a['bbox']) <= 6
    assert len(COCO(str(file)).loadRes(str(out.with_suffix('.json'))).anns) == len(dets)


def test_results_errors(info, tmp_path):
    det = dict(image_id=1, category_id=7, bbox=[0, 0, 5, 5], score=.5)
    for change, kwargs, message in ((dict(category_id=1), {}, 'category_id 1'), (dict(image_id=99), {}, 'image_id 99'), (dict(score=float('inf')), {}, 'diverged'),
                                    ({}, dict(name='../x'), 'name='), ({}, dict(iou_type='segm'), "has no 'segmentation'")):
        refused(lambda: write_results([det | change], info[1], tmp_path/'out', **dict(dict(name='x'), **kwargs)), message)
    assert not (tmp_path/'out').exists()


def _with_crowds(spec, tmp_path, rng):
    "Annotations with crowd regions, an image and a class without objects, and detections of them"
    gt = read_json(spec.val_json)
    dets = _detections(gt, rng)
    for d in dets: d['score'] = float(rng.rand())  # no ties: in which order copies of tied detections come is nobody's rule
    for a in gt['annotations']: a['iscrowd'] = int(rng.rand() < .15)
    gt['annotations'] = [a for a in gt['annotations'] if a['category_id'] != 3 and a['image_id'] != 5]
    return gt, dets, write_json(tmp_path/'gt.json', gt)


@pytest.mark.parametrize('seed', range(4))
def test_matches_give_the_ap_of_coco(spec, tmp_path, seed):
    "Average precision, written out from the matches, is that of pycocotools; of crowds and of some images too"
    gt, dets, file = _with_crowds(spec, tmp_path, np.random.RandomState(seed))
    dets += [dict(dets[0], bbox=[0., 0., 3., 3.], score=.9 + .0001*i) for i in range(120)]  # at most 100 of an image and class count
    ids = [i['id'] for i in gt['images']][:: 1 + seed % 2]
    match, ap = coco_matches(dets, gt, ids), []
    for c in {a['category_id'] for a in gt['annotations'] if a['image_id'] in ids and not a['iscrowd']}:
        objects = sum(a['category_id'] == c and a['image_id'] in ids and not a['iscrowd'] for a in gt['annotations'])
        own = sorted((k for k, d in enumerate(dets) if d['category_id'] == c and match[0, k] >= 0), key=lambda k: -dets[k]['score'])
        curve = [(sum(match[0, own[:n]] == 1)/objects, sum(match[0, own[:n]] == 1)/n) for n in range(1, len(own) + 1)]
        ap.append(np.mean([max((p for r, p in curve if r >= level), default=0) for level in np.linspace(0, 1, 101)]))
    assert 100*np.mean(ap) == pytest.approx(coco_ap(dets, file, images=ids)['AP50'], abs=1e-6)


def test_of_objects_that_overlap_alike_the_last_is_taken(tmp_path):
    "As COCO has it: here that costs the second detection its object"
    objects = [[0, 0, 10, 10], [2, 0, 10, 10]]
    file = write_json(tmp_path/'gt.json', dict(images=[dict(id=1)], categories=[dict(id=1)], annotations=[
        dict(id=k + 1, image_id=1, category_id=1, bbox=b, area=100, iscrowd=0) for k, b in enumerate(objects)]))
    dets = [dict(image_id=1, category_id=1, bbox=[float(x), 0., 10., 10.], score=s) for x, s in ((1, .9), (4, .8))]
    assert coco_matches(dets, read_json(file), [1])[0].tolist() == [1, 0] and coco_ap(dets, file)['AP50'] < 60


@pytest.mark.parametrize('seed', range(5))
def test_confusion_against_loops(tmp_path, seed):
    "Made-up objects and detections; pairs are found by looking at all of them again and again"
    rng = np.random.RandomState(seed)
    box = lambda: [*(rng.rand(2)*30).tolist(), *(5 + rng.rand(2)*20).tolist()]
    objects = [dict(id=k, image_id=int(rng.randint(3)), category_id=int(rng.choice([2, 5, 7])), bbox=box(), area=1., iscrowd=int(rng.rand() < .1)) for k in range(30)]
    found = [dict(image_id=o['image_id'], category_id=int(rng.choice([2, 5, 7])), score=float(rng.rand()),
                  bbox=[x + float(rng.randn()) for x in o['bbox']]) for o in objects for _ in range(2)]
    write_json(tmp_path/'gt.json', dict(images=[dict(id=i) for i in range(3)], annotations=objects, categories=[dict(id=i, name=str(i)) for i in (7, 2, 5)]))
    def iou(a, b):
        w, h = (max(0, min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
        return w*h/(a[2]*a[3] + b[2]*b[3] - w*h)
    names, want = [2, 5, 7], np.zeros((4, 4), int)
    for i in range(3):
        gs, ds = [o for o in objects if o['image_id'] == i], [d for d in found if d['image_id'] == i and d['score'] >= .3]
        while pairs := [(iou(d['bbox'], g['bbox']), d, g) for d in ds for g in gs if iou(d['bbox'], g['bbox']) >= .5]:
            _, d, g = max(pairs, key=lambda p: p[0])
            ds.remove(d), gs.remove(g)
            if not g['iscrowd']: want[names.index(g['category_id']), names.index(d['category_id'])] += 1
        for g in gs: want[names.index(g['category_id']), 3] += not g['iscrowd']
        for d in ds: want[3, names.index(d['category_id'])] += 1
    assert (confusion(found, tmp_path/'gt.json') == want).all() and want[:3, :3].sum() > 5
