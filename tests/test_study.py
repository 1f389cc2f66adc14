"The samples of a trained detector: what is stored fits together, seen from the stored boxes"
import numpy as np
import pytest

pytest.importorskip('mmdet')
from pisa import data, experiments, launch, runs, study

TINY = 'train_cfg.max_epochs=6 train_dataloader.batch_size=4'


@pytest.fixture(scope='module')
def spec():
    return data.load('shapes', n_train=64, n_val=16)


@pytest.fixture(scope='module')
def collected(tmp_path_factory, spec):
    folder = tmp_path_factory.mktemp('runs')
    path = launch.train(experiments.experiment(overrides=TINY), spec, folder, gpus=0)
    study.collect(path.name, spec, folder, images=10)
    return *study.read(path.name, folder), path.name, folder


def overlap(a, b):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def test_objects_are_those_of_the_images(collected, spec):
    _, objects, *_ = collected
    truth = data.load_samples(spec, 'val', 10)
    assert objects.image.tolist() == [i for i, s in enumerate(truth) for _ in s.labels]
    assert objects.label.tolist() == [label for s in truth for label in s.labels]
    np.testing.assert_allclose(objects[['x1', 'y1', 'x2', 'y2']], np.concatenate([s.boxes for s in truth]), rtol=1e-6)


def test_samples_fit_together(collected, spec):
    samples, objects, *_ = collected
    C, corners = len(spec.classes), ['x1', 'y1', 'x2', 'y2']
    pos, neg = samples[samples['gt'] >= 0], samples[samples['gt'] < 0]
    assert len(pos) > 20 and len(neg) > len(pos)
    assert (pos.iou_before >= 0.499).all() and (neg.iou_before < 0.501).all()  # as they were assigned
    own = objects.loc[pos['gt']]
    assert own.label.tolist() == pos.label.tolist() and own.image.tolist() == pos.image.tolist() and (neg.label == C).all()
    for some, of in ((pos, lambda s: [objects.loc[s['gt']]]), (neg.iloc[::40], lambda s: [o for _, o in objects[objects.image == s['image']].iterrows()])):
        for _, s in some.iterrows():
            best = max((overlap(s[corners].tolist(), o[corners].tolist()) for o in of(s)), default=0)
            assert s.iou == pytest.approx(best, abs=0.02)  # boxes are stored to an eighth of a pixel
    np.testing.assert_allclose(samples.loss, -np.log(samples.score), rtol=0.02, atol=0.02)  # cross entropy
    assert (samples.object_score[samples['gt'] >= 0] >= pos.score - 1e-3).all()
    assert (neg.score + neg.object_score <= 1.002).all()


def test_ranks(collected):
    pos = study.with_ranks(collected[0])
    for gt, own in pos.groupby('gt'):
        assert sorted(own.local_rank) == list(range(len(own)))
        assert (np.diff(own.sort_values('local_rank').iou) <= 0).all()
    for label, own in pos.groupby('label'):
        in_order = own.sort_values('rank')
        assert in_order['rank'].tolist() == list(range(len(own)))
        assert in_order.local_rank.is_monotonic_increasing


def test_refusals(collected, tmp_path, spec):
    _, _, run, folder = collected
    (runs.folder(run, folder) / 'weights.pth').rename(tmp_path / 'w.pth')
    with pytest.raises(FileNotFoundError, match='git keeps records only'): study.collect(run, spec, folder)
    assert study.collect(run, spec, folder, images=1, weights=tmp_path / 'w.pth').exists()
    with pytest.raises(FileNotFoundError, match='there is no complete run'): study.collect('none', spec, folder)
