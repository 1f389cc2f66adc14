"Experiments at paper scale against a table typed from the paper (Appendix B, v1) and mmdet's configs of that time (1.x); what a run says of itself"
import dataclasses
from pathlib import Path
import pytest

pytest.importorskip('mmdet')
import mmdet
from mmengine.config import Config
from pisa.lab import config, data, experiments
from pisa.lab.experiments import DETECTORS, TWO_STAGE, backbones
from refusal import refused


@pytest.fixture(scope='module')
def spec():
    "A data set as large as VOC07+12, so that warm-up ends within the training"
    return dataclasses.replace(data.load('shapes', n_train=1, n_val=1), n_train=16_551)


def paper_config(spec, detector, processes=8, **words):
    return config.config(experiments.experiment(detector, scale='paper', **words), spec, processes)


def at(cfg, path):
    "The value at a dotted path; a number counts in a list"
    for key in path.split('.'): cfg = cfg[int(key)] if key.lstrip('-').isdigit() else cfg[key]
    return cfg


def plain(x):
    if isinstance(x, dict): return {k: plain(v) for k, v in x.items()}
    return [plain(v) for v in x] if isinstance(x, (list, tuple)) else x


# ---- the paper's settings, typed in by hand

THIRD, NINTH = pytest.approx(1/3), pytest.approx(1/9)
RESNET = {  # ResNet-50 and ResNeXt-101: the stem and the first stage are frozen, and all statistics of batch norm
    'model.backbone.frozen_stages': 1, 'model.backbone.norm_eval': True, 'model.backbone.norm_cfg': dict(type='BN', requires_grad=True),
    'model.backbone.style': 'pytorch', 'model.neck.type': 'FPN', 'model.neck.out_channels': 256, 'model.neck.num_outs': 5,
    'model.data_preprocessor.mean': [123.675, 116.28, 103.53], 'model.data_preprocessor.std': [58.395, 57.12, 57.375],
    'model.data_preprocessor.bgr_to_rgb': True, 'model.data_preprocessor.pad_size_divisor': 32}
HALF = {'optim_wrapper.optimizer': dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)}
SGD = {  # 8 GPUs with 2 images each
    'train_dataloader.batch_size': 2, 'optim_wrapper.optimizer': dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    'optim_wrapper.clip_grad': dict(max_norm=35, norm_type=2)}
WARMUP = {'param_scheduler.0': dict(type='LinearLR', start_factor=THIRD, by_epoch=False, begin=0, end=500)}
ONE_X = {**WARMUP, 'train_cfg.max_epochs': 12, 'param_scheduler.-1': dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)}
RPN = {
    'model.rpn_head.anchor_generator.scales': [8], 'model.rpn_head.anchor_generator.ratios': [0.5, 1.0, 2.0],
    'model.rpn_head.anchor_generator.strides': [4, 8, 16, 32, 64], 'model.rpn_head.loss_bbox': dict(type='SmoothL1Loss', beta=NINTH, loss_weight=1.0),
    'model.rpn_head.bbox_coder.target_stds': [1.0, 1.0, 1.0, 1.0],
    'model.train_cfg.rpn.assigner.pos_iou_thr': 0.7, 'model.train_cfg.rpn.assigner.neg_iou_thr': 0.3, 'model.train_cfg.rpn.assigner.min_pos_iou': 0.3,
    'model.train_cfg.rpn.sampler.num': 256, 'model.train_cfg.rpn.sampler.pos_fraction': 0.5, 'model.train_cfg.rpn.allowed_border': 0,
    'model.neck.in_channels': [256, 512, 1024, 2048]}
PROPOSALS = {f'model.{part}.{key}': value for part in ('train_cfg.rpn_proposal', 'test_cfg.rpn')
             for key, value in dict(nms_pre=2000, max_per_img=2000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0).items()}
ROIS = dict(num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True)
def stage(rcnn, head, iou, stds):
    return {f'{rcnn}.assigner.pos_iou_thr': iou, f'{rcnn}.assigner.neg_iou_thr': iou, f'{rcnn}.assigner.min_pos_iou': iou,
            **{f'{rcnn}.sampler.{k}': v for k, v in ROIS.items()}, f'{head}.bbox_coder.target_stds': stds, f'{head}.fc_out_channels': 1024,
            f'{head}.loss_bbox': dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0), f'{head}.loss_cls.type': 'CrossEntropyLoss'}
RCNN = {
    **stage('model.train_cfg.rcnn', 'model.roi_head.bbox_head', 0.5, [0.1, 0.1, 0.2, 0.2]), 'model.roi_head.bbox_head.reg_class_agnostic': False}
ALIGN = {'model.roi_head.bbox_roi_extractor.roi_layer': dict(type='RoIAlign', output_size=7, sampling_ratio=2),
         'model.roi_head.bbox_roi_extractor.featmap_strides': [4, 8, 16, 32],
         'model.test_cfg.rcnn.score_thr': 0.05, 'model.test_cfg.rcnn.nms.iou_threshold': 0.5, 'model.test_cfg.rcnn.max_per_img': 100}
MASKS = {'model.roi_head.mask_roi_extractor.roi_layer': dict(type='RoIAlign', output_size=14, sampling_ratio=2),
         'model.roi_head.mask_head.num_convs': 4, 'model.roi_head.mask_head.conv_out_channels': 256, 'model.train_cfg.rcnn.mask_size': 28,
         'model.test_cfg.rcnn.mask_thr_binary': 0.5, 'model.data_preprocessor.pad_mask': True}
CASCADE = {
    'model.roi_head.num_stages': 3, 'model.roi_head.stage_loss_weights': [1, 0.5, 0.25],
    **{k: v for i, (iou, stds) in enumerate([(0.5, [0.1, 0.1, 0.2, 0.2]), (0.6, [0.05, 0.05, 0.1, 0.1]), (0.7, [0.033, 0.033, 0.067, 0.067])])
       for k, v in {**stage(f'model.train_cfg.rcnn.{i}', f'model.roi_head.bbox_head.{i}', iou, stds),
                    f'model.roi_head.bbox_head.{i}.reg_class_agnostic': True}.items()}}
DENSE = {
    'model.neck.start_level': 1, 'model.bbox_head.stacked_convs': 4, 'model.bbox_head.feat_channels': 256,
    'model.bbox_head.anchor_generator.strides': [8, 16, 32, 64, 128], 'model.test_cfg.nms_pre': 1000, 'model.test_cfg.score_thr': 0.05,
    'model.test_cfg.max_per_img': 100, **HALF,  # mmdet's, also for RetinaNet, see the table in notebook 40
    **{f'model.bbox_head.loss_cls.{k}': v for k, v in dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0).items()}}
RETINA = {
    'model.neck.add_extra_convs': 'on_input', 'model.bbox_head.anchor_generator.octave_base_scale': 4, 'model.bbox_head.norm_cfg': None,
    'model.bbox_head.anchor_generator.scales_per_octave': 3, 'model.bbox_head.anchor_generator.ratios': [0.5, 1.0, 2.0],
    'model.bbox_head.loss_bbox': dict(type='SmoothL1Loss', beta=0.11, loss_weight=1.0), 'model.bbox_head.bbox_coder.target_stds': [1.0, 1.0, 1.0, 1.0],
    'model.train_cfg.assigner.pos_iou_thr': 0.5, 'model.train_cfg.assigner.neg_iou_thr': 0.4, 'model.train_cfg.assigner.min_pos_iou': 0,
    'model.test_cfg.nms.iou_threshold': 0.5}
ATSS = {
    'model.neck.add_extra_convs': 'on_output', 'model.bbox_head.anchor_generator.octave_base_scale': 8,
    'model.bbox_head.anchor_generator.scales_per_octave': 1, 'model.bbox_head.anchor_generator.ratios': [1.0],
    'model.bbox_head.loss_bbox': dict(type='GIoULoss', loss_weight=2.0), 'model.bbox_head.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
    'model.train_cfg.assigner': dict(type='ATSSAssigner', topk=9), 'model.test_cfg.nms.iou_threshold': 0.6}
SSD = {  # 8 GPUs with 8 images each
    'train_dataloader.batch_size': 8, 'optim_wrapper.optimizer': dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=5e-4),
    'optim_wrapper.clip_grad': None, **WARMUP, 'train_cfg.max_epochs': 120, 'param_scheduler.-1.milestones': [80, 110], 'param_scheduler.-1.gamma': 0.1,
    'model.backbone.type': 'SSDVGG', 'model.backbone.depth': 16, 'model.backbone.out_feature_indices': [22, 34], 'model.neck.l2_norm_scale': 20,
    'model.neck.out_channels': [512, 1024, 512, 256, 256, 256], 'model.data_preprocessor.std': [1, 1, 1], 'model.data_preprocessor.pad_size_divisor': 1,
    'model.bbox_head.anchor_generator.strides': [8, 16, 32, 64, 100, 300], 'model.bbox_head.anchor_generator.input_size': 300,
    'model.bbox_head.anchor_generator.min_sizes': [21, 45, 99, 153, 207, 261], 'model.bbox_head.anchor_generator.max_sizes': [45, 99, 153, 207, 261, 315],
    'model.bbox_head.anchor_generator.ratios': [[2], [2, 3], [2, 3], [2, 3], [2], [2]], 'model.bbox_head.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
    'model.train_cfg.smoothl1_beta': 1.0, 'model.train_cfg.neg_pos_ratio': 3, 'model.train_cfg.assigner.pos_iou_thr': 0.5,
    'model.train_cfg.assigner.neg_iou_thr': 0.5, 'model.test_cfg.score_thr': 0.02, 'model.test_cfg.nms.iou_threshold': 0.45, 'model.test_cfg.max_per_img': 200}
PAPER = {
    'faster_rcnn': {**RESNET, **SGD, **ONE_X, **RPN, **PROPOSALS, **ALIGN, **RCNN},
    'mask_rcnn': {**RESNET, **SGD, **ONE_X, **RPN, **PROPOSALS, **ALIGN, **RCNN, **MASKS},
    'cascade_rcnn': {**RESNET, **SGD, **ONE_X, **RPN, **PROPOSALS, **ALIGN, **CASCADE},
    'retinanet': {**RESNET, **SGD, **ONE_X, **DENSE, **RETINA},
    'atss': {**RESNET, **SGD, **ONE_X, **DENSE, **ATSS},
    'ssd300': SSD}
VOC = {  # what differs on VOC07+12
    **{d: {**HALF, 'train_cfg.max_epochs': 12,
           'param_scheduler': [dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[9], gamma=0.1)]} for d in DETECTORS if d != 'ssd300'},
    'ssd300': {'train_cfg.max_epochs': 240, 'param_scheduler.-1.milestones': [160, 200],
               'model.bbox_head.anchor_generator.min_sizes': [30, 60, 111, 162, 213, 264],
               'model.bbox_head.anchor_generator.max_sizes': [60, 111, 162, 213, 264, 315]}}
CASES = [(d, dataset) for d in DETECTORS for dataset in ('coco', 'voc') if (d, dataset) != ('mask_rcnn', 'voc')]


@pytest.mark.parametrize('detector,dataset', CASES)
@pytest.mark.parametrize('method', ['baseline', 'pisa'])
def test_settings_of_the_paper(spec, detector, dataset, method):
    cfg = paper_config(spec, detector, dataset=dataset, method=method)
    expected = dict(PAPER[detector])
    if dataset == 'voc':
        expected = {k: v for k, v in expected.items() if not k.startswith('param_scheduler') or detector == 'ssd300'} | VOC[detector]
    found = {path: plain(at(cfg, path)) for path in expected}
    assert found == expected


@pytest.mark.parametrize('detector,dataset', CASES)
def test_images_of_the_paper(spec, detector, dataset):
    "Sizes, flips and, for SSD alone, colours, expansion and crops"
    cfg = paper_config(spec, detector, dataset=dataset)
    train, val = ([plain(step) for step in cfg[f'{split}_dataloader'].dataset.pipeline] for split in ('train', 'val'))
    if detector == 'ssd300': size, keep = [300, 300], False
    else: size, keep = [1333, 800] if dataset == 'coco' else [1000, 600], True
    for pipeline in (train, val): assert [s for s in pipeline if s['type'] == 'Resize'] == [dict(type='Resize', scale=size, keep_ratio=keep)]
    assert [s for s in train if s['type'] == 'RandomFlip'] == [dict(type='RandomFlip', prob=0.5)]
    augment = [s for s in train if s['type'] in ('PhotoMetricDistortion', 'Expand', 'MinIoURandomCrop')]
    assert augment == ([] if detector != 'ssd300' else [
        dict(type='PhotoMetricDistortion', brightness_delta=32, contrast_range=[0.5, 1.5], saturation_range=[0.5, 1.5], hue_delta=18),
        dict(type='Expand', mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=[1, 4]),
        dict(type='MinIoURandomCrop', min_ious=[0.1, 0.3, 0.5, 0.7, 0.9], min_crop_size=0.3)])
    assert {s['type'] for s in val} <= {'LoadImageFromFile', 'Resize', 'PackDetInputs'}


@pytest.mark.parametrize('name,expected', [
    ('r50', dict(type='ResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'))),
    ('r18', dict(type='ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'))),
    ('x101_32x4d', dict(type='ResNeXt', depth=101, groups=32, base_width=4, base_channels=64,
                        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnext101_32x4d')))])
def test_backbones_of_the_paper(spec, name, expected):
    backbone = plain(paper_config(spec, 'faster_rcnn', backbone=name).model.backbone)
    assert {k: backbone[k] for k in expected} == expected
    scratch = paper_config(spec, 'faster_rcnn', backbone=name, pretrained='none').model.backbone  # nothing is frozen that was never trained
    assert scratch.frozen_stages == -1 and not scratch.norm_eval and scratch.init_cfg is None


def test_components_of_the_paper(spec):
    "Section 5.3 (v1) and, for v2, the released code"
    rcnn = lambda **words: plain(paper_config(spec, 'faster_rcnn', **words).model.train_cfg.rcnn)
    v1, v2 = rcnn(), rcnn(formulation='v2')
    assert v1['isr'] == v2['isr'] == dict(gamma=2.0, beta=0.0)
    assert v1['carl'] == dict(k=1.0, b=0.1, form='replace') and v2['carl'] == dict(k=1.0, b=0.2, form='add')
    assert v1['sampler']['type'] == 'RandomSampler' and (v2['sampler']['pos'], v2['sampler']['neg']) == ('R', 'score_hlr')


@pytest.mark.parametrize('scale,warmup', [('paper', False), ('mini', True)])
def test_no_warm_up_is_no_scheduler(spec, scale, warmup):
    "On VOC at paper scale the learning rate starts where it is; SSD is warmed up, and every mini training"
    kinds = lambda d: [s.type for s in config.config(experiments.experiment(d, dataset='voc', scale=scale), spec).param_scheduler]
    assert kinds('faster_rcnn') == (['LinearLR'] if warmup else []) + ['MultiStepLR']
    assert kinds('ssd300') == ['LinearLR', 'MultiStepLR']


# ---- baseline and PISA are compared alike

def proposals(model):
    "What a detector does between the RPN and the result: proposals in training, and all of testing"
    return plain(dict(train=model.train_cfg.get('rpn_proposal'), test=model.test_cfg))


@pytest.mark.parametrize('scale', experiments.SCALES)
@pytest.mark.parametrize('detector', DETECTORS)
def test_baseline_and_pisa_have_the_same_proposals(spec, detector, scale):
    for backbone in backbones(detector, scale):
        models = {(m, f): config.config(experiments.experiment(detector, m, scale=scale, backbone=backbone, formulation=f), spec).model
                  for m in experiments.METHODS for f in experiments.FORMULATIONS
                  if f != 'released' or (m == 'pisa' and detector in experiments.RELEASED)}
        expected = proposals(models['baseline', 'v1'])
        for key, model in models.items(): assert proposals(model) == expected, key
        if detector in TWO_STAGE:
            assert expected['train']['max_per_img'] == expected['test']['rpn']['max_per_img'] == (2000 if scale == 'paper' else 256)


@pytest.mark.parametrize('detector, file', [('faster_rcnn', 'faster-rcnn_r50_fpn_pisa_1x_coco'), ('mask_rcnn', 'mask-rcnn_r50_fpn_pisa_1x_coco'),
                                            ('retinanet', 'retinanet-r50_fpn_pisa_1x_coco'), ('ssd300', 'ssd300_pisa_coco')])
def test_released_is_what_mmdets_own_configs_say(spec, detector, file):
    folder = Path(mmdet.__path__[0]) / '.mim/configs/pisa'
    if not folder.is_dir(): pytest.skip('mmdet came without its configs')
    theirs, ours = Config.fromfile(folder / f'{file}.py').model, paper_config(spec, detector, formulation='released').model
    part = lambda model: plain(model.train_cfg.get('rcnn', model.train_cfg))
    for key in ('isr', 'carl'): assert part(ours)[key] == part(theirs)[key]
    if detector in TWO_STAGE: assert {k: part(ours)['sampler'][k] for k in part(theirs)['sampler']} == part(theirs)['sampler']
    head = lambda model: model.get('roi_head', model.get('bbox_head')).type
    assert head(ours).replace('Released', 'PISA') == head(theirs)


def test_released_is_refused_where_mmdet_has_no_head():
    for words in (dict(detector='atss'), dict(detector='cascade_rcnn'), dict(method='isr'), dict(sampler='R/H*'), dict(detector='torchvision_retinanet')):
        refused(lambda: experiments.experiment(formulation='released', **words), "formulation='released' is mmdet's own heads, with method='pisa'")
    assert experiments.experiment(method='baseline', formulation='released') == experiments.experiment(method='baseline')


def test_more_proposals():
    "1000 proposals are tested for the baseline there and 2000 for PISA, so the comparison above can fail"
    folder = Path(mmdet.__path__[0]) / '.mim/configs'
    if not folder.is_dir(): pytest.skip('mmdet came without its configs')
    base, pisa = (proposals(Config.fromfile(folder / f).model) for f in ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py'))
    assert (base['test']['rpn']['max_per_img'], pisa['test']['rpn']['max_per_img']) == (1000, 2000)


# ---- what a run says of itself

def said(spec, **words):
    exp = experiments.experiment(**words)
    return config.summary(exp, config.config(exp, spec))


def test_summary_says_all_that_a_formulation_sets(spec):
    v1, v2 = said(spec), said(spec, formulation='v2')
    assert v1['ISR'] == v2['ISR'] == 'gamma=2.0, beta=0.0, metric=iou_hlr (IoU-HLR), scope=batch (all images of a process)'
    assert v1['CARL'] == 'k=1.0, b=0.1, form=replace (in place of the regression loss), detach=False (the gradient reaches the scores)'
    assert v2['CARL'].startswith('k=1.0, b=0.2, form=add (beside the regression loss), detach=False')
    for part in ('power=0.5', 'bias=0.0', 'score_thr=0.05', 'iou_thr=0.5'): assert part in v2['ISR-N']
    assert 'ISR-N' not in v1 and v2['method'] == 'pisa: ISR, CARL, ISR-N'
    assert not {'ISR', 'CARL', 'ISR-N', 'formulation'} & said(spec, method='baseline').keys()
    assert 'ISR-N' not in said(spec, detector='retinanet', formulation='v2')  # not in single-stage models
    released = said(spec, formulation='released')
    assert (released['ISR'], released['CARL']) == ('k=2.0, bias=0.0', 'k=1.0, bias=0.2') and "mmdet's own heads" in released['formulation']


def test_summary_reads_overrides(spec):
    rcnn = 'model.train_cfg.rcnn.'
    sizes = [said(spec, **words)['size of the images'] for words in (dict(), dict(scale='paper'), dict(detector='ssd300'), dict(overrides='train_dataloader.dataset.pipeline.2.scale=(64,48)'))]
    assert 'size of the images' not in said(spec, overrides='train_dataloader.dataset.pipeline.2.scale=64')
    assert sizes == ['resized to fit into 128 x 128 pixels', 'resized to fit into 1333 x 800 pixels', 'stretched to 128 x 128 pixels', 'resized to fit into 64 x 48 pixels']
    assert 'metric=loss (the classification loss)' in said(spec, overrides=f"{rcnn}isr.metric='loss'")['ISR']
    assert 'scope=2 (this many images at a time)' in said(spec, overrides=f'{rcnn}isr.scope=2')['ISR']
    assert 'detach=True (the scores get no gradient' in said(spec, overrides=f'{rcnn}carl.detach=True')['CARL']
    assert 'power=0.7' in said(spec, formulation='v2', overrides=f'{rcnn}sampler.hlr={{"power":0.7}}')['ISR-N']
    refused(lambda: said(spec, overrides=f'{rcnn}isr.gamma=two'), "isr.gamma='two': give a number")
    refused(lambda: said(spec, overrides='optim_wrapper.optimizer.fused=yes'), 'give True or False, as in')
    stages = said(spec, detector='cascade_rcnn', sampler='H/H')
    assert stages['ISR'].startswith('gamma=2.0') and 'H for positives, H for negatives' in stages['samples']


# ---- overrides name classes

@pytest.mark.parametrize('pair', ['val_evaluator.type=antigravity', 'val_dataloader.dataset.type=this'])
def test_overrides_name_no_modules(spec, pair):
    "mmengine would import what no registry holds"
    refused(lambda: paper_config(spec, 'ssd300', overrides=pair), "neither mmdet nor mmengine knows a '")


@pytest.mark.parametrize('pair', ['model.test_cfg.nms.type=soft_nms', 'model.backbone.norm_cfg.type=GN', 'optim_wrapper.optimizer.type=Adam',
                                  "model.neck.init_cfg={'type':'Kaiming','layer':'Conv2d'}", 'param_scheduler.1.type=CosineAnnealingLR'])
def test_overrides_name_what_is_registered(spec, pair):
    assert pair.rpartition('=')[2] in repr(paper_config(spec, 'retinanet', overrides=pair)._cfg_dict) or 'Kaiming' in pair


def test_overrides_can_name_classes_and_settings(spec):
    words = "optim_wrapper.optimizer={'_delete_':True,'type':'SGD','lr':0.1} model.bbox_head.loss_bbox.type=GIoULoss val_evaluator.voc=True"
    cfg = paper_config(spec, 'retinanet', overrides=words)
    assert (cfg.optim_wrapper.optimizer.type, cfg.model.bbox_head.loss_bbox.type, cfg.val_evaluator.voc) == ('SGD', 'GIoULoss', True)


# ---- the same training has the same id

@pytest.mark.parametrize('words,overrides', [
    (dict(), 'train_cfg.max_epochs=8'), (dict(detector='mask_rcnn'), 'train_cfg.max_epochs=6'), (dict(), 'model.train_cfg.rcnn.isr.gamma=2'), (dict(), 'model.train_cfg.rcnn.isr.gamma=2.0 train_dataloader.batch_size=8'),
    (dict(detector='retinanet', method='carl', formulation='v2'), 'model.train_cfg.carl.b=0.2'), (dict(scale='paper', dataset='voc'), 'train_cfg.max_epochs=12')])
def test_a_default_that_is_spelt_out_is_no_other_run(spec, words, overrides):
    a, b = experiments.experiment(**words), experiments.experiment(**words, overrides=overrides)
    assert a == b and a.id('data') == b.id('data')
    said = dataclasses.replace(a, overrides=overrides)  # that it is the default, seen in the config
    assert plain(config.config(said, spec).to_dict()) == plain(config.config(a, spec).to_dict())


def test_other_values_are_other_runs():
    ids = [experiments.experiment(**words).id('data') for words in (
        dict(), dict(overrides='train_cfg.max_epochs=3'), dict(overrides='model.train_cfg.rcnn.isr.gamma=2.5'),
        dict(formulation='v2'), dict(formulation='v2', overrides='model.train_cfg.rcnn.carl.b=0.1'))]
    assert len(set(ids)) == len(ids)


def test_weights_count_by_their_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    id = lambda file: experiments.experiment(pretrained=str(file)).id('data')
    for name, content in (('a.pth', b'some'), ('b.pth', b'some'), ('c.pth', b'others')): Path(name).write_bytes(content)
    first = id('a.pth')
    assert first == id(tmp_path / 'a.pth') == id('b.pth') and first not in (id('c.pth'), id('none'))
    Path('a.pth').write_bytes(b'others')
    assert id('a.pth') == id('c.pth') != first
