"nbs/evaluate.ipynb through papermill: tiny trainings, evaluated again, on other data and on a made-up test-dev"
import json
import shutil
import zipfile
import pytest

pytest.importorskip('mmdet')
from pisa.lab import data, experiments, predict, train as training
from pisa.lab.files import read_json, write_json
from notebooks import ROOT, last_line, log, papermill, pictures
from threads import one_thread

TINY = 'train_cfg.max_epochs=1 train_dataloader.dataset.indices=16 train_dataloader.batch_size=4'


def evaluate(folder, **parameters):
    "Run the notebook; what it wrote to its log"
    return log(papermill('evaluate', folder / 'out.ipynb', **parameters))


def refusal(folder, **parameters):
    "Run the notebook, which is to fail; the last line of the error"
    return last_line(papermill('evaluate', folder / 'out.ipynb', **parameters))


def train(folder, spec, *words, overrides=TINY, **more):
    "A tiny run; its id"
    with one_thread(): return training.train(experiments.experiment(*words, overrides=overrides, **more), spec, folder, gpus=0).name


@pytest.fixture(scope='module')
def trained(tmp_path_factory, spec):
    "The folder of runs and the id of a Mask R-CNN"
    folder = tmp_path_factory.mktemp('runs')
    return folder, train(folder, spec, 'mask_rcnn')


@pytest.fixture(scope='module')
def coco(tmp_path_factory, spec):
    "`shapes` in the layout of COCO 2017, with a test-dev that has no annotations"
    root = tmp_path_factory.mktemp('coco')
    for split, file, images in (('train', spec.train_json, spec.train_images), ('val', spec.val_json, spec.val_images)):
        write_json(root / f'annotations/instances_{split}2017.json', read_json(file))
        shutil.copytree(images, root / f'{split}2017')
    info = {k: v for k, v in read_json(spec.val_json).items() if k != 'annotations'}
    for image in info['images']: image['id'] += 1000  # no id of val
    write_json(root / 'annotations/image_info_test-dev2017.json', info)
    shutil.copytree(spec.val_images, root / 'test2017')
    return root


def test_the_numbers_are_those_of_the_run(trained, tmp_path):
    folder, run = trained
    before = {f: f.stat().st_mtime_ns for f in folder.rglob('*')}
    log = evaluate(tmp_path, run=run, runs_dir=folder, out=tmp_path / 'new')
    assert '16/16' in log and 'The metrics equal those after the training' in log
    assert read_json(tmp_path / 'new/evaluation.json')['metrics'] == read_json(folder / run / 'metrics.json')
    assert read_json(tmp_path / 'new/detections.json') == read_json(folder / run / 'detections.json')
    assert pictures(tmp_path / 'out.ipynb') == 2  # curves, detections
    assert {f: f.stat().st_mtime_ns for f in folder.rglob('*')} == before


def test_the_images_that_the_run_chose_are_its_own(tmp_path, spec):
    "An override takes 8 of the run's images; of other data all are looked at"
    run = train(tmp_path, spec, overrides=TINY + ' val_dataloader.dataset.indices=8')
    metrics, _, images = predict.evaluate(run, spec, tmp_path, gpus=0)
    assert images == list(range(1, 9)) and list(metrics) == list(read_json(tmp_path / run / 'metrics.json'))
    other = data.load('shapes', n_train=64, n_val=12)
    assert predict.evaluate(run, other, tmp_path, gpus=0)[2] == list(range(1, 13))


def test_test_dev(trained, coco, tmp_path):
    "The run's images look like those of COCO here; pycocotools takes what is written for the server"
    from pycocotools.coco import COCO
    folder, run = trained
    evaluate(tmp_path, run=run, runs_dir=folder, dataset='coco', split='test-dev', data_root=coco, out=tmp_path / 'upload')
    info = COCO(str(coco / 'annotations/image_info_test-dev2017.json'))
    for kind, field in (('bbox', 'bbox'), ('segm', 'segmentation')):
        stem = f'detections_test-dev2017_{run}-{kind}_results'
        with zipfile.ZipFile(tmp_path / 'upload' / f'{stem}.zip') as z: assert z.namelist() == [f'{stem}.json']
        sent = read_json(tmp_path / 'upload' / f'{stem}.json')
        assert sent and all(d[field] for d in sent) and {d['image_id'] for d in sent} <= {1000 + i for i in range(1, 17)}
        assert len(info.loadRes(str(tmp_path / 'upload' / f'{stem}.json')).anns) == len(sent)
    assert pictures(tmp_path / 'out.ipynb') == 1  # detections alone


def test_other_data_in_another_layout(trained, coco, tmp_path):
    "The validation images by way of COCO's layout: the same APs, but for what small and large mean"
    folder, run = trained
    evaluate(tmp_path, run=run, runs_dir=folder, dataset='coco', data_root=coco, out=tmp_path / 'new')
    new, own = read_json(tmp_path / 'new/evaluation.json')['metrics'], read_json(folder / run / 'metrics.json')
    for name in ('AP', 'AP50', 'mask_AP'): assert new[name] == pytest.approx(own[name], abs=1e-9)


def test_a_folder_with_one_split(trained, spec, tmp_path):
    "The validation images alone in a folder: all of them, or three of them if divided as in training"
    folder, run = trained
    write_json(tmp_path / 'alone/annotations.json', read_json(spec.val_json))
    shutil.copytree(spec.val_images, tmp_path / 'alone/images')
    for split, n in (('auto', 16), ('val', 3)):
        evaluate(tmp_path, run=run, runs_dir=folder, split=split, data_root=tmp_path / 'alone', out=tmp_path / split)
        assert read_json(tmp_path / split / 'evaluation.json')['images'] == n
    assert read_json(tmp_path / 'auto/evaluation.json')['metrics']['AP'] == pytest.approx(read_json(folder / run / 'metrics.json')['AP'], abs=1e-9)


def test_a_folder_with_one_split_that_was_trained_on(spec, tmp_path):
    "Only the images that it was not trained on"
    write_json(tmp_path / 'alone/annotations.json', read_json(spec.val_json))
    shutil.copytree(spec.val_images, tmp_path / 'alone/images')
    run = train(tmp_path / 'runs', data.load('folder', tmp_path / 'alone'), overrides=TINY.replace('=16', '=8'), dataset='folder')
    scope = first_cells('evaluate', run=run, runs_dir=tmp_path / 'runs', data_root=tmp_path / 'alone')
    assert scope['spec'].n_val == 3 and scope['same']


def first_cells(notebook, **parameters):
    "The variables after the cells before the heading *Evaluation*, or before the model is made, without papermill, which takes seconds"
    cells = [''.join(c['source']) for c in json.loads((ROOT / f'nbs/{notebook}.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    scope = {'In': [], 'display': print}  # IPython's
    exec(cells[0], scope)
    scope.update(parameters)
    for cell in cells[1:3 if notebook == 'evaluate' else 2]: exec(cell, scope)
    return scope


def test_the_layout_of_voc_gets_the_order_of_the_runs_classes(trained, spec, tmp_path):
    "VOC's files list no classes: sorted, they would have another order"
    folder, run = trained
    truth = read_json(spec.val_json)
    name = {c['id']: c['name'] for c in truth['categories']}
    shutil.copytree(spec.val_images, tmp_path / 'voc')
    for image in truth['images']:
        boxes = [(name[a['category_id']], *a['bbox']) for a in truth['annotations'] if a['image_id'] == image['id']]
        objects = ''.join(f'<object><name>{n}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>' for n, x, y, w, h in boxes)
        (tmp_path / 'voc' / image['file_name']).with_suffix('.xml').write_text(f'<annotation>{objects}</annotation>')
    evaluate(tmp_path, run=run, runs_dir=folder, split='all', data_root=tmp_path / 'voc', out=tmp_path / 'new')
    new, own = read_json(tmp_path / 'new/evaluation.json')['metrics'], read_json(folder / run / 'metrics.json')
    for key in ('AP', 'AP50', 'AP75'): assert new[key] == pytest.approx(own[key], abs=1e-9)


def test_other_classes_are_refused(trained, coco, tmp_path):
    folder, run = trained
    for split in ('train', 'val'):
        content = read_json(coco / f'annotations/instances_{split}2017.json')
        content['categories'][0]['name'] = 'blob'
        write_json(tmp_path / f'coco/annotations/instances_{split}2017.json', content)
        (tmp_path / f'coco/{split}2017').symlink_to(coco / f'{split}2017')
    last = refusal(tmp_path, run=run, runs_dir=folder, dataset='coco', data_root=tmp_path / 'coco')
    assert last == (f'ValueError: coco has 8 classes (blob, square, triangle, star, ...), but run {run} was trained on '
                    '8 classes (disk, square, triangle, star, ...): choose data with the same classes')


def test_a_run_without_weights_is_refused(trained, spec, tmp_path):
    "As after a clone; weights from elsewhere will do"
    folder, run = trained
    shutil.copytree(folder / run, tmp_path / 'runs' / run, ignore=shutil.ignore_patterns('weights.pth'))
    last = refusal(tmp_path, run=run, runs_dir=tmp_path / 'runs')
    assert last.startswith(f'FileNotFoundError: run {run} has no weights: they are not in the folder of the run. Give the file (weights=), or train it, after pisa.lab.runs.delete')
    train_it = f"papermill nbs/train.ipynb runs/mask_rcnn-pisa-shapes-s0.ipynb --log-output --no-progress-bar -p detector mask_rcnn -p method pisa -p overrides '{' '.join(sorted(TINY.split()))}' -p runs_dir {tmp_path}/runs"
    assert last.endswith(train_it)
    (tmp_path / 'runs' / run).rename(tmp_path / 'record')
    (tmp_path / 'record').rename((tmp_path / 'runs/records').mkdir() or tmp_path / 'runs/records' / run)
    last = refusal(tmp_path, run=run, runs_dir=tmp_path / 'runs')
    assert last == f'FileNotFoundError: run {run} has no weights: a record has none. Give the file (weights=), or train it: {train_it}'
    metrics, *_ = predict.evaluate(run, spec, tmp_path / 'runs', 0, folder / run / 'weights.pth')
    assert metrics == pytest.approx(read_json(folder / run / 'metrics.json'), abs=1e-2)


@pytest.mark.parametrize('parameters, message', [
    (dict(run='no-such-run'), "there is no complete run 'no-such-run'"), (dict(), "there is no complete run ''"), (dict(run='../x'), 'is not the id of a run'),
    (dict(split='test'), "split='test' is not known"), (dict(split='all'), "split='all' needs data_root"), (dict(split='test-dev'), "give dataset='coco', not 'shapes'"),
    (dict(split='test-dev', dataset='coco'), 'needs data_root'), (dict(dataset='coco'), "dataset='coco' needs data_root"),
    (dict(dataset='coc'), "did you mean 'coco'?"), (dict(weights='none.pth'), 'none.pth is not there')])
def test_what_cannot_be_is_refused_in_one_line(trained, parameters, message):
    given = dict(run='' if parameters == {} else trained[1], runs_dir=trained[0]) | parameters
    with pytest.raises((ValueError, FileNotFoundError)) as e: first_cells('evaluate', **given)
    assert message in str(e.value) and '\n' not in str(e.value)


def test_weights_of_another_detector_are_refused(trained, spec, tmp_path):
    folder, run = trained
    other = train(tmp_path, spec, 'retinanet')
    with pytest.raises(ValueError, match='are not of this detector') as e: predict.evaluate(run, spec, folder, 0, tmp_path / other / 'weights.pth')
    assert '\n' not in str(e.value)


def test_predict(trained, spec, tmp_path):
    "The detections of `evaluate` in two of its images; a damaged image is named and passed over"
    folder, run = trained
    images = sorted(spec.val_images.iterdir())[:2]
    for f in images: shutil.copy(f, tmp_path)
    (tmp_path / 'x.jpg').write_text('no image')
    text = log(papermill('predict', tmp_path / 'out.ipynb', run=run, runs_dir=folder, images=tmp_path, score=0.02, out=tmp_path / 'found'))
    assert 'in 2 images' in text and 'passed over: ' in text and 'x.jpg cannot be read as an image' in text
    found = read_json(tmp_path / 'found/detections.json')
    known = [d for d in read_json(folder / run / 'detections.json') if d['image_id'] in (1, 2) and d['score'] >= 0.02]
    assert len(found) == len(known) > 0 and {d['name'] for d in found} <= set(spec.classes)
    for d in found:  # scores that are alike to the last digits may come in another order
        like = [k for k in known if (k['image_id'], k['category_id']) == (d['image_id'], d['category_id']) and k['bbox'] == pytest.approx(d['bbox'], abs=0.05)]
        assert len(like) == 1 and d['score'] == pytest.approx(like[0]['score'], abs=1e-3) and 'segmentation' in d
    assert len((tmp_path / 'found/detections.csv').read_text().splitlines()) == len(found) + 1 and pictures(tmp_path / 'out.ipynb') == 1
    wrong = last_line(papermill('predict', tmp_path / 'out.ipynb', run=run, runs_dir=folder, images=tmp_path / 'x.jpg', out=tmp_path / 'found'))
    assert 'no image could be read: ' in wrong and read_json(tmp_path / 'found/detections.json') == found  # not replaced
    for images in ('', tmp_path / 'none', tmp_path / 'fou*'):  # the last is a folder
        with pytest.raises(ValueError, match='names no image: give a file, a folder, or a pattern'): first_cells('predict', run=run, runs_dir=folder, images=images)
