"""Splits that timm would silently take for the whole dataset, or for another part of it."""
from types import SimpleNamespace

import pytest

from aa_models.data.split_names import split_fault
from aa_models.training import splits
from aa_models.training.recipe import load_recipe
from command import refused
from training_runs import make_pictures, train_words


@pytest.fixture
def root(tmp_path):
    """Makes a folder of class folders, by the names of its parts."""
    def make(*parts):
        for part in parts:
            (tmp_path / part / 'class0').mkdir(parents=True)
        return str(tmp_path)
    return make


@pytest.mark.parametrize('parts, split', [
    (['train', 'validation'], 'validation'), (['train', 'val'], 'validation'), (['training', 'eval'], 'train'),
    (['train', 'test'], 'test'), (['train', 'fold1'], 'fold1'),
    (['train'], 'validation'),  # a part of the training pictures is held out
    ([''], 'train'), ([''], 'validation'), ([''], 'test'), (['cats/young', 'dogs/old'], 'train')])
def test_what_is_there(root, parts, split):
    folder = root(*parts)
    assert split_fault('', folder, split) is None and split_fault('torch/image_folder', folder, split) is None


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
@pytest.mark.parametrize('parts, split, message', [
    (['train', 'test'], 'validation', 'there is no folder val/ or valid/ or validation/ or eval/ or evaluation/, but '
                                      'train/, test/'),
    (['train', 'test'], 'tset', 'there is no folder tset/, but train/, test/'),
    (['train', 'validation'], 'test', 'no folder test/, but train/, validation/'),
    (['train', 'validation'], 'trian', 'no folder trian/'), (['train'], 'test', 'no folder test/, but train/'),
    (['test'], 'train', 'no folder train/ or training/, but test/'),
    (['train', 'validation'], 'train[:50%]', 'a folder has no slices')])
def test_what_is_not(root, name, parts, split, message):
    assert message in split_fault(name, root(*parts), split)


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    for name in ('test', 'cat'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '0.png').touch()
    assert split_fault('', str(tmp_path), 'train') is None


def test_datasets_of_two_parts():
    for split in ('train', 'training', 'validation', 'val', 'test'):
        assert split_fault('torch/cifar100', 'data', split) is None
    for split in ('trian', 'train[:90%]'):
        assert split_fault('torch/CIFAR100', 'data', split).startswith('possible are train, training, val')
    assert split_fault('hfds/cifar100', 'data', 'train[:90%]') is None and split_fault('', None, 'train') is None


@pytest.mark.parametrize('command', ['train', 'validate', 'corruptions'])
def test_nothing_is_measured_on_the_training_pictures(tmp_path, capsys, command):
    """Beside train/ a folder often has test/, where timm looks for validation/."""
    data = make_pictures(tmp_path / 'data')
    (data / 'validation').rename(data / 'test')
    words = {
        'train': train_words(tmp_path / 'out', data),
        'validate': ['--model', 'simplecnn', '--data-dir', data, '--workers', 0],
        'corruptions': ['simplecnn', '--data-dir', data, '--output', tmp_path / 'out']}[command]
    assert "has no split 'validation': there is no folder val/" in refused(capsys, command, *words)
    assert not (tmp_path / 'out').exists()


def test_one_part_under_two_names(monkeypatch):
    monkeypatch.setattr(
        splits, 'open_dataset', lambda name, root, split, **options: SimpleNamespace(train=split.startswith('train')))
    for names in (('train', 'training'), ('val', 'test')):
        recipe = load_recipe('cifar100_resnet', train_split=names[0], val_split=names[1])
        with pytest.raises(ValueError, match=f'{names[0]} and {names[1]} are the same part of torch/cifar100'):
            splits.open_datasets(recipe, 'data', download=False)
    splits.open_datasets(load_recipe('cifar100_resnet', val_split='test'), 'data', download=False)
