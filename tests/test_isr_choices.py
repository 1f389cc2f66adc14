"ISR's metrics (Table 7, v1) and scopes (Table 6, v1) against loops; ranks over two processes against one that has all images"
import dataclasses
import pytest
import torch
from torch import distributed as dist, multiprocessing as mp

pytest.importorskip('mmdet')
from mmdet.structures.bbox import bbox_overlaps
import pisa.mmdet
from pisa.prime import ISR, METRICS, Positives, prime_weights
from small import roi_head, run


def samples(n=60, images=4, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g)
    image = torch.randint(images, (n,), generator=g).sort()[0]
    gt = image * 5 + torch.randint(5, (n,), generator=g)
    label = torch.randint(classes, (images * 5,), generator=g)[gt]
    corner = (rand(images * 5, 2) * 50)[gt]
    gt_box = torch.cat([corner, corner + 30], 1)
    prob, prior = rand(n), gt_box + rand(n, 4) * 10 - 5
    return Positives(loss=-prob.log(), prob=prob, reg_loss=rand(n, 4), box=prior + rand(n, 4) * 10 - 5, prior=prior, gt_box=gt_box, gt=gt, label=label,
                     image=image.float(), weight=torch.ones(n))


def by_loops(pos, metric, images, gamma=2., beta=0.1):
    loss = pos.loss.tolist()
    before = bbox_overlaps(pos.prior, pos.gt_box, is_aligned=True).tolist()
    after = bbox_overlaps(pos.box, pos.gt_box, is_aligned=True).tolist()
    value = dict(iou_hlr=after, iou=after, iou_before=before, loss=loss, local_rank=after)[metric]
    n, weight = len(loss), [0.] * len(loss)
    part = [int(i) // images for i in pos.image]
    if metric == 'local_rank': part = pos.gt.tolist()  # each object apart
    for c in {(p, int(l)) for p, l in zip(part, pos.label)}:
        mine = [i for i in range(n) if (part[i], int(pos.label[i])) == c]
        local = {i: sum(value[j] > value[i] for j in mine if pos.gt[j] == pos.gt[i]) if metric == 'iou_hlr' else 0 for i in mine}
        for r, i in enumerate(sorted(mine, key=lambda i: (local[i], -value[i]))):
            weight[i] = ((1 - beta) * (len(mine) - r) / len(mine) + beta) ** gamma
    ratio = sum(loss) / sum(w * l for w, l in zip(weight, loss))
    return torch.tensor([w * ratio for w in weight])


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('scope,images', [('batch', 99), ('image', 1), (1, 1), (2, 2), (3, 3)])
def test_weights(metric, scope, images):
    torch.testing.assert_close(weights(samples(), metric, scope), by_loops(samples(), metric, images), rtol=1e-4, atol=1e-5)


def of_images(pos, images):
    "The positives of some images, with ids and image numbers that start at 0 again, as a process has them"
    mine = (pos.image >= min(images)) & (pos.image <= max(images))
    part = Positives(*(getattr(pos, f.name)[mine] for f in dataclasses.fields(pos)))
    return dataclasses.replace(part, gt=part.gt - min(images) * 5, image=part.image - min(images))


def weights(pos, metric, scope):
    return prime_weights(pos, ISR(beta=0.1, metric=metric, scope=scope))


def process(rank, folder, split):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    mine = of_images(samples(), split[rank]) if split[rank] else Positives(*(getattr(samples(), f.name)[:0] for f in dataclasses.fields(Positives)))
    torch.save({m: weights(mine, m, 'world') for m in METRICS}, f'{folder}/{rank}')
    dist.destroy_process_group()


@pytest.mark.parametrize('split', [((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((0, 1, 2, 3), ())])
def test_two_processes_rank_as_one(tmp_path, split):
    mp.spawn(process, (str(tmp_path), split), nprocs=2)
    both = [torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1)]
    for metric in METRICS:
        torch.testing.assert_close(torch.cat([b[metric] for b in both]), weights(samples(), metric, 'batch'), rtol=1e-5, atol=1e-6)


def test_one_process_is_the_world():
    for metric in METRICS: assert torch.equal(weights(samples(), metric, 'world'), weights(samples(), metric, 'batch'))


def test_metrics_and_scopes_reach_the_head():
    weight = 'bbox_head.fc_cls.weight'
    grads = [run(roi_head(isr=isr), (3, 2, 4))[1][weight] for isr in (dict(), dict(metric='iou'), dict(metric='iou_before'), dict(metric='loss'), dict(scope='image'), dict(scope=2))]
    for i, a in enumerate(grads):
        for b in grads[:i]: assert not torch.allclose(a, b, rtol=1e-3)
    same = run(roi_head(isr=dict(scope=3)), (3, 2, 4))[1][weight]
    torch.testing.assert_close(grads[0], same)


@pytest.mark.parametrize('isr', [dict(metric='hlr'), dict(scope='images'), dict(scope=0), dict(scope=-1), dict(scope=1.5)])
def test_refused(isr):
    with pytest.raises(ValueError, match='Choose from'): roi_head(isr=isr)
