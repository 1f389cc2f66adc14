"""ISR, CARL and IoU-HLR against mmdet's PISA and against a sort: `python tests/bench/core.py [isr] [hlr] [kernels] [--record]`.

Time is CPU time of one thread. Decoded boxes, their IoUs and the cross entropy are computed beforehand, since both
sides need them."""
import re
from types import SimpleNamespace
import numpy as np
import torch
from torch._inductor import metrics
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from mmdet.models.losses import pisa_loss
from mmdet.models.losses.pisa_loss import carl_loss as released_carl, isr_p
from mmdet.models.losses import CrossEntropyLoss, SmoothL1Loss
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.structures.bbox import bbox_overlaps
from pisa.carl import carl_loss
from pisa.hlr import iou_hlr
from pisa.isr import isr_weights
from record import against, paired, report, words


def scene(n, images, objects, classes, seed=0, device='cpu'):
    "n positives of some images, each with so many objects: label, object of the image, image, box, box of the object, loss"
    g = torch.Generator().manual_seed(seed)
    owner = torch.randint(images * objects, (n,), generator=g).sort()[0]
    gt_label, corner = torch.randint(classes, (images * objects,), generator=g), torch.rand(images * objects, 2, generator=g) * 500
    gt_box = torch.cat([corner, corner + 50 + torch.rand(images * objects, 2, generator=g) * 100], 1)[owner]
    box = gt_box + torch.randn(n, 4, generator=g) * 8
    iou = bbox_overlaps(box, gt_box, is_aligned=True)
    tensors = dict(iou=iou, label=gt_label[owner], gt=owner % objects, image=owner // objects, id=owner, box=box, gt_box=gt_box,
                   loss=torch.rand(n, generator=g) * 3)
    return SimpleNamespace(**{k: v.to(device) for k, v in tensors.items()}, images=images, classes=classes)


def released(s):
    "mmdet's `isr_p`, with boxes, IoUs and losses already there"
    results = [SimpleNamespace(pos_assigned_gt_inds=s.gt[s.image == i]) for i in range(s.images)]
    coder, overlaps = SimpleNamespace(decode=lambda rois, delta: delta), pisa_loss.bbox_overlaps
    rois, score = s.box.new_zeros(len(s.gt), 4), s.box.new_zeros(len(s.gt), 1)
    def run():  # it adds to the IoUs in place
        pisa_loss.bbox_overlaps = lambda *a, **k: s.iou.clone()
        try: return isr_p(score, s.box, (s.label, torch.ones_like(s.loss), s.gt_box, None), rois, results, lambda *a, **k: s.loss, coder, num_class=s.classes)[1]
        finally: pisa_loss.bbox_overlaps = overlaps
    return run


def ours(s): return lambda: isr_weights(s.iou, s.id, s.label, s.loss)


def isr():
    for n, images, objects, rounds, repeats in ((128, 2, 10, 40, 20), (20_000, 8, 100, 9, 5)):
        s = scene(n, images, objects, 80)
        seconds = paired({'pisa': ours(s), 'mmdet': released(s)}, rounds, repeats=repeats)
        report('core', 'isr: time of mmdet over ours', against(seconds, ['pisa', 'mmdet']), positives=n, images=images, objects=objects, classes=80)


def hlr():
    rows = []
    for n in (1_000, 10_000, 100_000, 1_000_000):
        g = torch.Generator().manual_seed(0)
        iou, gt = torch.rand(n, generator=g), torch.randint(max(1, n // 10), (n,), generator=g)
        label = gt % 80
        repeats = max(1, 20_000 // n)
        ratio = against(paired({'sort': lambda: torch.sort(iou), 'iou_hlr': lambda: iou_hlr(iou, gt, label)}, 15, repeats=repeats), ['sort', 'iou_hlr'])[1]
        rows.append({'samples': n, **{k: v for k, v in ratio.items() if k != 'what'}, 'ns_by_n_log_n': ratio['ms'] * 1e6 / (n * np.log2(n))})
    report('core', 'hlr: time of iou_hlr over torch.sort of as many float32', rows, objects='1 of 10 samples', classes=80)


class Counter(TorchDispatchMode):
    "Counts the operations that compute something: not views, not mere allocations"
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.n += not view and not func._schema.name.startswith(('aten::empty', 'aten::new_empty', 'aten::detach', 'aten::_local_scalar_dense'))
        return out


def work(f):
    "How many kernels a call launches on a GPU; without one, how many operations that would launch at least one"
    f()
    if torch.cuda.is_available():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof: f()
        return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in prof.events())
    with Counter() as counter: f()
    return counter.n


def compiled(f):
    "The same after `torch.compile`: the kernels that it makes, and the operations that it leaves to torch"
    metrics.reset()
    _, code = run_and_get_code(torch.compile(f, fullgraph=True))
    return metrics.generated_kernel_count + sum(len(re.findall(r'= (?:torch\.ops\.aten|extern_kernels)\.', c)) for c in code)


def kernels():
    "ISR and CARL from scores and boxes to weights and loss, as in a head: 512 RoIs, of which a quarter are positive"
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    s = scene(128, 2, 10, 80)
    to = lambda x: x.to(device)
    label = torch.full((512,), 80)
    label[:64], label[256:320] = s.label[:64], s.label[64:]
    label = to(label)
    pos = (label < 80).nonzero()[:, 0]
    g = torch.Generator().manual_seed(1)
    score, delta = (to(torch.randn(512, k, generator=g)).requires_grad_() for k in (81, 320))
    rois = torch.zeros(512, 5)
    rois[pos.cpu(), 1:] = s.box
    rois = to(rois)
    coder, ce, l1 = DeltaXYWHBBoxCoder(target_stds=[.1, .1, .2, .2]), CrossEntropyLoss(), SmoothL1Loss()
    target = torch.zeros(512, 4, device=device)
    target[pos] = coder.encode(rois[pos, 1:], to(s.gt_box))
    results = [SimpleNamespace(pos_assigned_gt_inds=to(s.gt[i:i + 64])) for i in (0, 64)]
    gt_box, own, ids, weight = to(s.gt_box), to(s.label), to(s.id), torch.ones(512, device=device)

    def of_mmdet():
        isr_p(score, delta, (label, weight.clone(), target, None), rois, results, ce, coder, num_class=80)
        released_carl(score, label, delta, target, l1)['loss_carl']

    def of_pisa():
        p, d = score[pos], delta.view(512, -1, 4)[pos, own]
        with torch.no_grad():
            weight = isr_weights(bbox_overlaps(coder.decode(rois[pos, 1:], d), gt_box, is_aligned=True), ids, own, ce(p, own, reduction_override='none'))
        return weight, carl_loss(p.softmax(1).gather(1, own[:, None])[:, 0], l1(d, target[pos], reduction_override='none')).sum()

    rows = [dict(what=name, operations=count(f)) for name, count, f in
            (('pisa', work, of_pisa), ('mmdet', work, of_mmdet), ('pisa, torch.compile', compiled, of_pisa))]
    for row in rows: row['ratio'] = row['operations'] / rows[1]['operations']
    report('core', 'kernels: operations of ISR and CARL', rows, rois=512, positives=128, device=device,
           counted='kernel launches' if device == 'cuda' else 'operations, each at least a kernel on a GPU')


if __name__ == '__main__':
    for bench in words() or ('isr', 'hlr', 'kernels'): globals()[bench]()
