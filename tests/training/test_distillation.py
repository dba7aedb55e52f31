"""Learning from a teacher: what it sees, what is minimised, pictures without labels, exact resume, what is refused."""
import json
import shutil

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch.nn import functional as F

from aa_models.data import known_datasets
from aa_models.errors import InputError
from aa_models.models.create import build_model
from aa_models.training import distillation, run
from aa_models.training.loop import make_criterion
from aa_models.training.recipe import Recipe, load_recipe
from command import refused
from interruptions import lose_epochs
from our_models import uneven
from training_runs import assert_same_run, checkpoint_of, log_of, run_training, train_words

CPU = torch.device('cpu')
CONFIG = dict(input_size=(3, 16, 16), mean=(0.5, 0.45, 0.4), std=(0.3, 0.25, 0.2))


def task_of(teacher, **values):
    """A task, its student and its teacher."""
    recipe = Recipe(model='aa_simplecnn', teacher=f'local-dir:{teacher}', **values)
    student = uneven(timm.create_model('aa_simplecnn', num_classes=3, dk=8, dv=8, num_heads=2, img_size=16))
    model = distillation.make_teacher(recipe, CPU)
    return distillation.make_task(student, model, make_criterion(recipe), recipe, CONFIG, CPU), student, model


# what the teacher sees

def test_a_teacher_sees_pictures_as_it_was_trained_on_them(teacher):
    task, _, model = task_of(teacher)
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(CONFIG[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
    seen = model.normalize_input((pixels - mean) / std, task.student_mean, task.student_std)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    resized = F.interpolate(pixels, (20, 28), mode='bicubic', antialias=True)
    torch.testing.assert_close(seen, (resized - mean) / std, rtol=1e-4, atol=1e-5)


def test_nothing_changes_for_a_teacher_of_the_same_preprocessing(teacher):
    _, _, model = task_of(teacher)
    x = torch.randn(2, 3, 20, 28)
    assert model.normalize_input(x, model.mean_kd, model.std_kd) is x


# what is minimised

@pytest.mark.parametrize('kind, weights, of_labels, of_teacher', [
    ('logit', {}, 1, 1), ('logit', dict(task_loss_weight=0.3), 0.3, 0.7), ('logit', dict(task_loss_weight=0.), 0, 1),
    ('logit', dict(distill_loss_weight=2.), 1, 2), ('logit', dict(task_loss_weight=0.5, distill_loss_weight=3), 0.5, 3),
    ('feature', {}, 1, 1), ('feature', dict(task_loss_weight=0.5, distill_loss_weight=3), 0.5, 3)])
def test_losses(kind, weights, of_labels, of_teacher, teacher):
    """By the formulas of the papers, written out."""
    task, student, model = task_of(teacher, kd_distill_type=kind, kd_temperature=2.5, **weights)
    student.eval()
    x, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 2, 1, 1])
    loss = task(x, labels)['loss']
    theirs = model.normalize_input(x, task.student_mean, task.student_std)
    expected = of_labels * F.cross_entropy(student(x), labels, label_smoothing=0.1)
    if kind == 'logit':
        p, q = (net(images).double().div(2.5).softmax(1) for net, images in ((model.model, theirs), (student, x)))
        expected = expected + of_teacher * 2.5 ** 2 * (p * (p / q).log()).sum(1).mean()
    else:
        pooled = [net.forward_features(images).mean((2, 3)) for net, images in ((student, x), (model.model, theirs))]
        projected = task.trainable_module.projection(pooled[0])
        expected = expected + of_teacher * (projected - pooled[1]).square().mean()
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(p.grad is None for p in model.parameters()) and all(p.grad is not None for p in student.parameters())


def test_logits_are_compared_in_float32(teacher):
    task, student, _ = task_of(teacher)
    student.eval()
    x, labels = torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    exact = task(x, labels)['kd_loss']
    with torch.autocast('cpu', torch.bfloat16):
        rounded = task(x, labels)
    assert rounded['kd_loss'].dtype == torch.float32
    torch.testing.assert_close(rounded['kd_loss'], exact, rtol=0.1, atol=0.01)


# runs

@pytest.mark.parametrize('kind, weights', [
    ('logit', dict(task_loss_weight=0.)), ('feature', dict(task_loss_weight=0.5, distill_loss_weight=4.))])
def test_a_broken_run_ends_as_an_unbroken_one(kind, weights, tmp_path, data, teacher):
    values = dict(
        teacher=f'local-dir:{teacher}', kd_distill_type=kind, **weights, epochs=3, ema=True, ema_decay=0.5, mixup=0.2,
        hflip=0.5, drop=0.1, amp=True, opt='adamw', lr=0.01, layer_decay=0.8, clip_grad=1.)
    unbroken = run_training(tmp_path / 'unbroken', data, **values)
    output = run_training(tmp_path / 'out', data, **values)
    lose_epochs(output)
    assert_same_run(run_training(output, data, **values), unbroken)
    one, other = checkpoint_of(output), checkpoint_of(unbroken)
    for key in ('task_state', 'task_state_ema'):
        assert (key in one) == (key in other) == (kind == 'feature')
        torch.testing.assert_close(one.get(key, {}), other.get(key, {}), rtol=0, atol=0)
    assert not any('teacher' in name or name.startswith('student.') for name in one['state_dict'])
    if kind == 'feature':
        moved = one['task_state']['projection']['weight'] - one['task_state_ema']['projection']['weight']
        assert moved.any()  # it is trained, too


@pytest.fixture
def unlabelled(data, tmp_path):
    """The pictures of all classes in one folder."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for number, path in enumerate(sorted((data / 'train').rglob('*.png'))):
        shutil.copy(path, folder / f'{number}.png')
    return folder


def test_pictures_without_labels(unlabelled, tmp_path, teacher, monkeypatch):
    """The classes are the teacher's, and validation measures how often the student agrees with it."""
    # a dataset that the teacher's classes are known to be of, of which these pictures are none
    known = known_datasets.KnownDataset('Colours', None, '', ('red', 'green', 'blue'))
    monkeypatch.setattr(known_datasets, '_TINY_IMAGENET', known)
    output = run_training(
        tmp_path / 'out', unlabelled, teacher=f'local-dir:{teacher}', task_loss_weight=0., epochs=40, lr=0.1,
        holdout=8, model_kwargs=dict(channels=[8, 8, 16, 16, 16], img_size=16, attn_stages=[False, False]))
    assert load_recipe(output / 'recipe.yaml').num_classes == 3
    folder = output / 'aa_simplecnn.out'
    config = json.loads((folder / 'config.json').read_text())
    assert config['label_names'] == ['red', 'green', 'blue'] and config['num_classes'] == 3
    card = ' '.join((folder / 'README.md').read_text().split())
    assert f'trained from scratch towards the logits of `local-dir:{teacher}`, without labels, on' in card
    assert 'private folder of images' in card and 'Colours' not in card
    log = log_of(output)
    assert float(log[-1]['train_loss']) < 0.2 * float(log[0]['train_loss'])

    student, model = (build_model(f'local-dir:{path}', pretrained=True).eval() for path in (folder, teacher))
    held = run.open_datasets(load_recipe(output / 'recipe.yaml'), str(unlabelled), False)[1]
    own, theirs = (create_transform((3, 16, 16), mean=net.pretrained_cfg['mean'], std=net.pretrained_cfg['std'],
                                    interpolation='bicubic', crop_pct=1.) for net in (student, model))
    pictures = [Image.open(path).convert('RGB') for path in paths_of(held)]
    with torch.inference_mode():
        mine = student(torch.stack([own(p) for p in pictures])).argmax(1)
        resized = F.interpolate(torch.stack([theirs(p) for p in pictures]), (20, 28), mode='bicubic', antialias=True)
        guesses = model(resized).argmax(1)
    agreement = 100 * (mine == guesses).float().mean().item()
    assert float(log[-1]['eval_top1']) == pytest.approx(agreement, abs=0.01)


def test_folder_without_labels_and_splits_trains_as_it_is(unlabelled, tmp_path, teacher, caplog):
    """A part is held out of it, by itself; the plan says who says what the pictures show."""
    caplog.set_level('INFO')
    run_training(tmp_path / 'out', unlabelled, teacher=f'local-dir:{teacher}', task_loss_weight=0., epochs=1)
    plan = [line for line in caplog.messages if line.startswith(('teacher', 'data', 'classes'))]
    assert plan == [
        f'teacher: local-dir:{teacher}, {sum(p.numel() for p in build_model(f"local-dir:{teacher}").parameters()):,} '
        'parameters, at 20 × 28 px, which alone says what a picture shows',
        'data: 22 images to train, 2 to validate, at 16 px', 'classes: 3 (red, green, blue)']


def paths_of(part):
    """The files of a part of a folder."""
    samples = part.dataset.reader.samples
    return [samples[index][0] for index in part.indices]


def test_labels_that_the_teacher_does_not_know_are_not_looked_at(data, tmp_path, teacher):
    """Folders of four names for three classes; there is no fourth output."""
    folder = tmp_path / 'data'
    shutil.copytree(data, folder)
    for split in ('train', 'validation'):
        shutil.copytree(folder / split / 'class0', folder / split / 'class9')
    output = run_training(
        tmp_path / 'out', folder, teacher=f'local-dir:{teacher}', task_loss_weight=0., epochs=1, mixup=0.2)
    assert checkpoint_of(output)['state_dict']['head.fc.weight'].shape[0] == 3


def test_a_teacher_changes_neither_the_start_nor_itself(data, tmp_path, teacher):
    """Of weight as good as none it leaves a run as it is without one."""
    alone = run_training(tmp_path / 'alone', data, epochs=1)
    output = run_training(tmp_path / 'out', data, epochs=1, teacher=f'local-dir:{teacher}', distill_loss_weight=1e-30)
    torch.testing.assert_close(checkpoint_of(output)['state_dict'], checkpoint_of(alone)['state_dict'])


# what is refused

@pytest.mark.parametrize('values, message', [
    (dict(task_loss_weight=0.5), 'task_loss_weight = 0.5 needs a teacher'),
    (dict(distill_loss_weight=1.), 'distill_loss_weight = 1 needs a teacher'),
    (dict(teacher='resnet18', task_loss_weight=2.), 'task_loss_weight = 2 leaves the teacher a negative weight'),
    (dict(teacher='resnet18', task_loss_weight=1.), "teacher = 'resnet18' has weight 0"),
    (dict(teacher='resnet18', distill_loss_weight=0.), "teacher = 'resnet18' has weight 0"),
    (dict(teacher='resnet18', kd_temperature=0.), 'kd_temperature = 0.0 must be greater than 0'),
    (dict(teacher='resnet18', kd_distill_type='token'), "kd_distill_type = 'token' must be 'logit' or 'feature'"),
    (dict(teacher='resnet18', kd_distill_type='feature', task_loss_weight=0.), 'leave the classifier untrained'),
    (dict(teacher='resnet_18'), "model = 'resnet_18' is unknown: did you mean"),
    (dict(teacher='aa_resnet152'), 'aa_resnet152 has no pretrained weights'),
    (dict(teacher='local-dir:nowhere'), 'nowhere'),
    (dict(teacher='TEACHER', num_classes=4), 'has 3 classes, the model 4'),
    (dict(teacher='GREY'), 'takes images of 1 channels, the model 3'),
])
def test_what_is_refused(values, message, data, tmp_path, teacher, capsys):
    if values.get('teacher') == 'TEACHER':
        values = {**values, 'teacher': f'local-dir:{teacher}'}
    elif values.get('teacher') == 'GREY':
        grey = timm.create_model('simplecnn', num_classes=3, in_chans=1)
        timm.models.save_for_hf(grey, tmp_path / 'grey', safe_serialization=True)
        values = {**values, 'teacher': f'local-dir:{tmp_path / "grey"}'}
    err = refused(capsys, 'train', *train_words(tmp_path / 'out', data, **values))
    assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_logits_are_in_the_order_of_the_pictures_classes(teacher, caplog):
    """A teacher may know more classes, and in another order; with other names they are taken as they come."""
    recipe, images = Recipe(teacher=f'local-dir:{teacher}'), torch.randn(2, 3, 20, 28)
    plain = distillation.make_teacher(recipe, CPU)
    for classes, outputs in ((['Blue', 'red'], [2, 0]), (['red', 'green', 'blue'], [0, 1, 2]), (None, [0, 1, 2])):
        model = distillation.make_teacher(recipe, CPU, classes)
        assert model.num_classes == len(outputs) and torch.equal(model(images), plain(images)[:, outputs])
    assert not caplog.messages
    model = distillation.make_teacher(recipe, CPU, ['a', 'b', 'c'])
    assert torch.equal(model(images), plain(images)) and "other names for its classes, 'red', 'green'" in caplog.text
    with pytest.raises(InputError, match="has no class 'b', which the pictures have"):
        distillation.make_teacher(recipe, CPU, ['red', 'b', 'blue'])


def test_a_student_of_some_of_the_teachers_classes(tmp_path, data, teacher):
    pictures = tmp_path / 'pictures'
    for split in ('train', 'validation'):
        for number, name in enumerate(('blue', 'red')):
            shutil.copytree(data / split / f'class{number}', pictures / split / name)
    output = run_training(tmp_path / 'out', pictures, teacher=f'local-dir:{teacher}', epochs=1)
    assert load_recipe(output / 'recipe.yaml').num_classes == 2


def test_options(tmp_path, data, teacher):
    output = run_training(
        tmp_path / 'out', data, '--teacher', f'local-dir:{teacher}', '--kd-distill-type', 'feature',
        '--distill-loss-weight', '2', '--kd-temperature', 3, epochs=1)
    recipe = load_recipe(output / 'recipe.yaml')
    assert (recipe.teacher, recipe.kd_distill_type) == (f'local-dir:{teacher}', 'feature')
    assert (recipe.distill_loss_weight, recipe.task_loss_weight, recipe.kd_temperature) == (2., None, 3.)
