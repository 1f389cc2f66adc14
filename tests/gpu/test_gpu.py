"ISR and CARL on a GPU: the numbers of the CPU, without a synchronisation, in a CUDA graph, compiled whole; trainings with mmdet where it is there"
import os
import pytest
import torch
from pisa.carl import carl_loss
from pisa.isr import isr_weights

DEVICE = os.environ.get('PISA_GPU', 'cuda')  # `cpu` tries the tests themselves
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
needs_device = pytest.mark.skipif(DEVICE == 'cuda' and not torch.cuda.is_available(), reason='no GPU here')
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason='no two GPUs here')


def case(n=4096, seed=0):
    "IoU, ground truth, label, classification loss, mask, probability and regression loss of n samples"
    g = torch.Generator().manual_seed(seed)
    gt = torch.randint(n // 20 + 1, (n,), generator=g)
    return [torch.rand(n, generator=g), gt, gt % 80, torch.rand(n, generator=g), torch.rand(n, generator=g) > 0.3,
            torch.rand(n, generator=g), torch.rand(n, 4, generator=g)]


def both(iou, gt, label, loss, mask, prob, reg):
    return isr_weights(iou, gt, label, loss, mask=mask), carl_loss(prob, reg, weight=mask)


def assert_equal(there, n, seed=0):
    for ours, cpu in zip(there, both(*case(n, seed))): torch.testing.assert_close(ours.cpu(), cpu, rtol=1e-4, atol=1e-6)


@needs_device
@pytest.mark.parametrize('n', [1, 37, 4096, 100_000])
def test_equal_to_the_cpu(n):
    assert_equal(both(*[x.to(DEVICE) for x in case(n)]), n)


@needs_device
def test_compiled_as_one_graph():
    torch._dynamo.reset()
    assert_equal(torch.compile(both, fullgraph=True)(*[x.to(DEVICE) for x in case()]), 4096)


@needs_cuda
def test_no_synchronisation():
    args = [x.cuda() for x in case()]
    both(*args)  # what is set up once may synchronise
    args[5].requires_grad_()
    torch.cuda.set_sync_debug_mode('error')
    try: both(*args)[1].sum().backward()
    finally: torch.cuda.set_sync_debug_mode('default')


@needs_cuda
def test_captured_in_a_graph():
    "Recorded once and replayed on other numbers"
    static = [x.cuda() for x in case(seed=0)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3): both(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): out = both(*static)
    for seed in (1, 2):
        for x, new in zip(static, case(seed=seed)): x.copy_(new)
        graph.replay()
        assert_equal(out, 4096, seed)


@needs_cuda
def test_ops_of_the_samplers():
    "NMS-match on the GPU makes the clusters that it makes on the CPU"
    pytest.importorskip('mmdet')
    from pisa.mmdet.samplers import nms_match
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=g) * 100
    args = torch.cat([corner, corner + 20 + 30 * torch.rand(500, 2, generator=g)], 1), torch.rand(500, generator=g), 0.5, torch.arange(500) % 3
    there = nms_match(*[x.cuda() if isinstance(x, torch.Tensor) else x for x in args])
    assert there.cpu().tolist() == nms_match(*args).tolist()


@needs_cuda
def test_a_training_with_mmdet(tmp_path):
    pytest.importorskip('mmdet')
    from pisa.lab import data, experiments, runs, train
    exp = experiments.experiment(overrides='train_cfg.max_epochs=1 train_dataloader.dataset.indices=32')
    path = train.train(exp, data.load('shapes', n_train=64, n_val=16), tmp_path, gpus=1)
    assert runs.load(tmp_path).AP.notna().all() and (path / 'weights.pth').exists()


@needs_two
def test_two_gpus_with_mmdet(tmp_path):
    "The loss curve of two GPUs is that of two processes on the CPU, which is tested to be that of one"
    pytest.importorskip('mmdet')
    from pisa.lab import data, experiments, runs, train
    same = ('train_cfg.max_epochs=3 train_dataloader.dataset.indices=20 train_dataloader.batch_size=4 val_dataloader.dataset.indices=7 '
            'train_dataloader.dataset.pipeline.3.prob=0.0 model.backbone.norm_eval=True model.train_cfg.isr.scope=world '
            'optim_wrapper.optimizer.type=SGD optim_wrapper.optimizer.lr=0.01')
    exp, spec = experiments.experiment('atss', 'isr', overrides=same, precision='float32'), data.load('shapes', n_train=64, n_val=16)
    curves = []
    for name, gpus, processes in (('gpus', 2, 1), ('cpu', 0, 2)):
        path = train.train(exp, spec, tmp_path / name, gpus=gpus, processes=processes)
        curves.append(runs.scalars(path.name, tmp_path / name))
    torch.testing.assert_close(*(torch.tensor(c.loss.to_numpy()) for c in curves), rtol=1e-2, atol=0)
