"What is collected of a trained detector fits together, seen from the stored boxes, from mmdet's own detections and by loops"
import copy, dataclasses, warnings
import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet')
from mmdet.registry import DATASETS, MODELS
from mmengine.structures import InstanceData
from pisa.lab import config, evaluate, experiments, files, predict, runs, samples as kept, study, train, weights
from pisa.lab.show import load_samples

TINY = 'train_cfg.max_epochs=6 train_dataloader.batch_size=4'
CORNERS = ['x1', 'y1', 'x2', 'y2']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def collected(folder, spec):
    path = train.train(experiments.experiment(overrides=TINY), spec, folder, gpus=0)
    study.collect(path.name, spec, folder, images=16, negatives=10)
    return kept.read(path.name, folder)


@pytest.fixture(scope='module')
def seen(collected, folder, spec):
    "The model, and what it makes of the images"
    record, exp, file = predict.trained(collected.run, folder)
    cfg = config.config(exp, spec)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model, dataset = MODELS.build(cfg.model).eval(), DATASETS.build(cfg.val_dataloader.dataset)
    weights.load_weights(model, file)
    return model, dataset, study.samples_of_images(model, spec, dataset, 16)


def overlap(a, b):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def test_objects_are_those_of_the_images(collected, spec):
    objects, truth = collected.objects, load_samples(spec, 'val', 16)
    assert objects.image.tolist() == [i for i, s in enumerate(truth) for _ in s.labels]
    assert objects.label.tolist() == [label for s in truth for label in s.labels]
    np.testing.assert_allclose(objects[CORNERS], np.concatenate([s.boxes for s in truth]), rtol=1e-6)


def test_samples_fit_together(collected, spec):
    samples, objects, C = collected.samples, collected.objects, len(spec.classes)
    pos, neg = samples[samples['gt'] >= 0], samples[samples['gt'] < 0]
    assert len(pos) > 20 and len(neg) > len(pos)
    assert neg.image.max() == 9 and pos.image.max() > 9  # negatives of the first ten images alone
    own = objects.loc[pos['gt']]
    assert own.label.tolist() == pos.label.tolist() and own.image.tolist() == pos.image.tolist() and (neg.label == C).all()
    for some, of in ((pos, lambda s: [objects.loc[s['gt']]]), (neg.iloc[::40], lambda s: [o for _, o in objects[objects.image == s['image']].iterrows()])):
        for _, s in some.iterrows():
            best = max((overlap(s[CORNERS].tolist(), o[CORNERS].tolist()) for o in of(s)), default=0)
            assert s.iou == pytest.approx(best, abs=0.02)  # boxes are stored to an eighth of a pixel
    np.testing.assert_allclose(samples.loss, -np.log(samples.score), rtol=0.02, atol=0.02)  # cross entropy


def test_positives_are_assigned_by_their_boxes_before_regression(seen, spec):
    "A proposal belongs to the object with which it has the highest IoU, if that is 0.5 or more; here from the boxes in the resized image, by a loop"
    model, dataset, collected = seen
    positives = 0
    for item, s, truth in zip(map(dataset.__getitem__, range(4)), collected, load_samples(spec, 'val', 4)):
        data = model.data_preprocessor({k: [item[k]] for k in ('inputs', 'data_samples')}, False)
        with torch.no_grad(): proposals = model.rpn_head.predict(model.extract_feat(data['inputs']), data['data_samples'], rescale=False)[0].bboxes
        objects = (np.asarray(truth.boxes) * (item['data_samples'].scale_factor * 2)).tolist()
        ious = [[overlap(p, o) for o in objects] for p in proposals.tolist()]
        assert len(ious) == len(s['gt'])
        for row, gt in zip(ious, s['gt'].tolist()):
            if abs(max(row) - 0.5) < 1e-4: continue  # rounding may decide
            if max(row) < 0.5: assert gt == -1
            else: assert row[gt] >= max(row) - 1e-4 and gt >= 0
        positives += int((s['gt'] >= 0).sum())
    assert positives > 10


def test_objects_as_samples_are_what_mmdet_makes_of_them_as_proposals(collected, seen):
    "Training adds the objects' own boxes to the proposals. Here mmdet gets them as its only proposals, and keeps every class of every box"
    model, dataset, _ = seen
    own, item, C = collected.objects[collected.objects.image == 3], dataset[3], model.roi_head.bbox_head.num_classes
    sample = item['data_samples'].clone()
    boxes = torch.tensor(own[CORNERS].to_numpy())
    sample.proposals = InstanceData(bboxes=boxes * boxes.new_tensor(sample.scale_factor * 2), scores=torch.ones(len(boxes)))
    was, model.roi_head.test_cfg = model.roi_head.test_cfg, copy.deepcopy(model.roi_head.test_cfg)
    model.roi_head.test_cfg.update(score_thr=-1, nms=dict(type='nms', iou_threshold=1.), max_per_img=-1)
    with torch.no_grad():
        theirs = model.test_step({'inputs': [item['inputs']], 'data_samples': [sample]})[0].pred_instances
    model.roi_head.test_cfg = was
    assert len(theirs) == C * len(own) > 0
    for _, o in own.iterrows():
        ious = [(overlap(b.tolist(), o[CORNERS].tolist()), s.item()) for b, s, label in zip(theirs.bboxes, theirs.scores, theirs.labels) if label == o.label]
        assert any(abs(iou - o.own_iou) < 2e-3 and abs(score - o.own_score) < 2e-3 for iou, score in ious), (o, ious)


def test_an_image_without_objects_has_negatives_alone(seen, spec):
    model, dataset, _ = seen
    truth = load_samples(dataclasses.replace(spec, has_masks=False), 'val', 1)[0]
    s = study.samples_of(model, dataset[0], dataclasses.replace(truth, boxes=truth.boxes[:0], labels=truth.labels[:0]))
    assert (s['gt'] == -1).all() and (s['label'] == model.roi_head.bbox_head.num_classes).all() and len(s['own_iou']) == len(s['gt_box']) == 0


def test_detections_are_those_of_mmdet(collected, seen):
    model, dataset, _ = seen
    item = dataset[3]
    with torch.no_grad():
        theirs = model.test_step({'inputs': [item['inputs']], 'data_samples': [item['data_samples']]})[0].pred_instances
    ours = collected.detections[collected.detections.image == 3]
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours.score, theirs.scores, atol=1e-3)
    np.testing.assert_allclose(ours[CORNERS], theirs.bboxes, atol=0.07)
    assert (ours.label.to_numpy() == theirs.labels.numpy()).mean() > 0.95  # scores may tie in half precision


def test_detections_name_their_samples(collected):
    samples, found = collected.samples, collected.detections
    known = found[found['sample'] >= 0]
    own = samples.loc[known['sample']].reset_index(drop=True)
    assert (own.image.to_numpy() == known.image.to_numpy()).all()
    right = own.label.to_numpy() == known.label.to_numpy()
    assert right.sum() > 5
    np.testing.assert_allclose(own[CORNERS][right], known[CORNERS].to_numpy()[right], atol=0.13)  # the box of the own class
    np.testing.assert_allclose(own.score[right], known.score.to_numpy()[right], atol=2e-3)
    assert (found[found['sample'] < 0].image > 9).all()  # negatives that are not kept


def test_precision_is_that_of_the_training(collected, folder, spec):
    "The run's own evaluation went through mmdet's loop"
    found = files.read_json(runs.folder(collected.run, folder) / 'detections.json')
    theirs = evaluate.pr_curves(evaluate.precisions(found, spec.val_json, area_limits=spec.area_limits))
    assert theirs.max() > 0
    np.testing.assert_allclose(collected.precision[0], theirs, atol=1e-3)


def recall_by_loops(hits, objects, images):
    "Recall before each number of false positives an image is exceeded; `hits` from the highest score down"
    recall = []
    for allowed in kept.FALSE_POSITIVES:
        n_true, n_false = 0, 0
        for hit in hits:
            if not hit and n_false + 1 > allowed * images: break
            n_true, n_false = n_true + hit, n_false + (not hit)
        recall.append(n_true / objects)
    return recall


@pytest.mark.parametrize('seed', range(3))
def test_recall_of_many_detections_by_loops(seed):
    rng, n, objects, images = np.random.default_rng(seed), 400, 120, 16
    score = rng.permutation(n) / n
    hits = rng.random((n, 2)) < score[:, None] * [.45, .2]  # as many as there are objects at most; the high scored are right more often
    curves = kept.recall_curves(score, hits, objects, images)
    for t in range(2):
        by_score = hits[np.argsort(-score), t]
        np.testing.assert_allclose(curves[t], recall_by_loops(by_score, objects, images), atol=1e-6)
        assert len(np.unique(curves[t])) > 5  # a curve that rises


def test_raised_scores_lower_the_loss_by_the_budget(collected, seen):
    _, _, images = seen
    logit, label = (torch.cat([s[k] for s in images]).double() for k in ('logit', 'label'))
    label = label.long()
    top = {n: [] for n in kept.TOP}
    for s in images:  # the linear order of Section 3, in words: all best of an object, by IoU, then all second best...
        pos = [i for i in range(len(s['gt'])) if s['gt'][i] >= 0]
        better = {i: sum(s['gt'][j] == s['gt'][i] and (s['iou'][j] > s['iou'][i] or s['iou'][j] == s['iou'][i] and j < i) for j in pos) for i in pos}
        order = sorted(pos, key=lambda i: (better[i], -s['iou'][i].item(), i))
        for n in kept.TOP: top[n].append(torch.tensor([i in order[:n] for i in range(len(s['gt']))]))
    before = F.cross_entropy(logit, label, reduction='none')
    chosen = {n: torch.cat(parts) for n, parts in top.items()}
    budget = min(0.1 * before.sum(), 0.98 * before[chosen[5]].sum()).item()
    assert budget > 0
    assert collected.loss_sum[0] == pytest.approx(before.sum().item(), rel=1e-5)
    for n, by, after in zip(kept.TOP, collected.raised_by[1:], collected.loss_sum[1:]):
        z = logit.clone()
        z[chosen[n], label[chosen[n]]] += by
        assert before.sum().item() - after == pytest.approx(budget, rel=1e-4)
        assert F.cross_entropy(z, label, reduction='sum').item() == pytest.approx(after, rel=1e-5)
    assert collected.raised_by[1] > collected.raised_by[2] > 0
    assert (collected.precision[1] >= 0).all() and collected.precision[1].mean() > collected.precision[0].mean()


def test_ranks(collected):
    pos = kept.with_ranks(collected.samples)
    for gt, own in pos.groupby('gt'):
        assert sorted(own.local_rank) == list(range(len(own)))
        assert (np.diff(own.sort_values('local_rank').iou) <= 0).all()
    for _, own in pos.groupby('image'):
        in_order = own.sort_values('image_rank')
        assert in_order.image_rank.tolist() == list(range(len(own)))
        assert in_order.local_rank.is_monotonic_increasing


def test_refusals(collected, folder, tmp_path, spec):
    run = collected.run
    with pytest.raises(ValueError, match='negatives=-1: give a whole number of images'): study.collect(run, spec, folder, negatives=-1)
    (runs.folder(run, folder) / 'weights.pth').rename(tmp_path / 'w.pth')
    with pytest.raises(FileNotFoundError, match='has no weights: they are not in the folder of the run'): study.collect(run, spec, folder)
    assert study.collect(run, spec, folder, images=1, weights=tmp_path / 'w.pth').exists()
    with pytest.raises(FileNotFoundError, match='there is no complete run'): study.collect('none', spec, folder)


def test_committed_studies():
    "Small, of the format of today, and with the AP that the training recorded"
    found = sorted((files.root() / 'runs/records').glob('*/samples.npz'))
    if not found: pytest.skip('no run in runs/ has samples.npz')
    compared = 0
    for file in found:
        s = kept.read(file.parent.name, files.root() / 'runs')
        assert file.stat().st_size < 0.5e6, file
        record = files.read_json(file.with_name('run.json'))
        if s.images == record['data']['n_val']:
            assert 100 * s.precision[0].mean() == pytest.approx(files.read_json(file.with_name('metrics.json'))['AP'], abs=0.05)
            compared += 1
    assert compared
