"pisa.evaluate: the same numbers as pycocotools, and what happens at the edges"
import copy, json
import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pisa.core import read_json, write_json
from pisa.data import load
from pisa.evaluate import COCOAP, coco_ap, pr_curves, precisions, to_coco

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


def _reference(detections, file, kind, limits):
    "pycocotools"
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    gt = COCO(str(file))
    dets = [{k: v for k, v in d.items() if k != ('bbox' if kind == 'segm' else 'segmentation')} for d in copy.deepcopy(detections)]
    ev = COCOeval(gt, gt.loadRes(dets), kind)
    ev.params.areaRng = [[0, 1e10], [0, limits[0]], [limits[0], limits[1]], [limits[1], 1e10]]
    ev.evaluate(); ev.accumulate(); ev.summarize()
    return [None if v == -1 else 100*v for v in ev.stats[:6]]


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
    gt, rng = read_json(spec.val_json), np.random.RandomState(0)
    a = gt['annotations'][0]
    dets = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=.1)]
    dets += [dict(dets[0], bbox=[0., 0., 3., 3.], score=.2 + .001*i) for i in range(120)]
    ref = _reference(dets, spec.val_json, 'bbox', (256, 1024))
    assert coco_ap(dets, spec.val_json, area_limits=(256, 1024))['AP'] == pytest.approx(ref[0], abs=1e-6) == 0
    assert coco_ap(dets, spec.val_json, max_dets=121)['AP'] > 0


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


def test_metric_drops_padding(gapped, spec):
    "Several processes may evaluate an image twice to fill up; mmengine then cuts to the data set's size"
    gt, file = gapped
    metric = COCOAP(file, area_limits=spec.area_limits)
    for k in [*range(1, 41), 1, 2]: metric.process(None, [_sample(gt, k, masks=False)])
    assert metric.evaluate(40)['AP'] == pytest.approx(100)
    assert len(metric.detections) == len(gt['annotations'])


def test_metric_without_detections(gapped):
    metric = COCOAP(gapped[1], prefix='val')
    metric.process(None, [_sample(dict(annotations=[]), k, masks=False) for k in range(1, 41)])
    result = metric.evaluate(40)
    assert result['val/AP'] == 0 and result['val/AP_L'] is None and metric.detections == []


def test_metric_takes_mmdets_samples(gapped, spec):
    "DetDataSample and InstanceData, as an Evaluator passes them on"
    from mmdet.structures import DetDataSample
    from mmengine.evaluator import Evaluator
    from mmengine.structures import InstanceData
    gt, file = gapped
    evaluator = Evaluator(COCOAP(file, area_limits=spec.area_limits))
    samples = []
    for k in range(1, 41):
        s = DetDataSample(metainfo=dict(img_id=k))
        s.pred_instances = InstanceData(**_sample(gt, k, masks=False)['pred_instances'])
        samples.append(s)
    evaluator.process(samples)
    assert evaluator.evaluate(40)['AP'] == pytest.approx(100)


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
