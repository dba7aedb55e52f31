"""Data that do not fit the model, and pictures that cannot be read: never a figure that means something else."""
import itertools
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from aa_models.data.labels import outputs_of
from command import refused, run_command
from training_runs import RECIPE, checkpoint_of, make_pictures, run_training, train_words


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data):
    """A run of class0, class1 and class2 that has learned something."""
    return run_training(tmp_path_factory.mktemp('trained') / 'out', data, '--tag', 'noise', epochs=4, lr=0.2)


def validated(capsys, trained, folder, *words, checkpoint=False):
    """Exit status, top-1 in percent, number of pictures and standard error of `validate`."""
    model = ['--checkpoint', trained / 'last.pth.tar'] if checkpoint else [
        '--model', f'local-dir:{trained / "aa_simplecnn.noise"}']
    status, out, err = run_command(capsys, 'validate', *model, '--data-dir', folder, '--workers', 0, *words)
    found = re.search(r'top-1 (\S+) % .* of (\d+) images', out)
    return status, *((float(found[1]), int(found[2])) if found else (None, None)), out + err


@pytest.fixture
def pictures(data, tmp_path):
    """A copy of the pictures to validate on, to change."""
    return shutil.copytree(data / 'validation', tmp_path / 'pictures' / 'validation')


# classes

@pytest.mark.parametrize('checkpoint', [False, True])
def test_part_of_the_classes_is_matched_by_name(checkpoint, trained, pictures, capsys):
    """Each class alone has another label than in training; together they give the figure of all."""
    _, together, count, _ = validated(capsys, trained, pictures.parent, checkpoint=checkpoint)
    assert count == 24 and together > 50
    alone = []
    for name in ('class0', 'class1', 'class2'):
        shutil.copytree(pictures / name, pictures.parent.parent / name / 'validation' / name)
        alone.append(validated(capsys, trained, pictures.parent.parent / name, checkpoint=checkpoint))
    assert [(status, count) for status, _, count, _ in alone] == 3 * [(0, 8)]
    assert np.mean([top1 for _, top1, _, _ in alone]) == pytest.approx(together, abs=0.01)


def test_class_that_the_model_does_not_have(trained, pictures, capsys):
    (pictures / 'class1').rename(pictures / 'zebra')
    for checkpoint in (False, True):
        status, top1, _, text = validated(capsys, trained, pictures.parent, checkpoint=checkpoint)
        assert (status, top1) == (2, None) and "no class 'zebra'" in text and "'class1'" in text


def test_matching():
    cfg = dict(label_names=('red', 'green', 'blue'))
    assert outputs_of(['blue', 'red'], cfg, 3) == [2, 0] and outputs_of(None, cfg, 3) is None
    assert outputs_of(['a', 'b', 'c'], {}, 3) is None  # as many as there are, in their order
    assert outputs_of(['n01443537', 'n01440764'], dict(num_classes=1000), 1000) == [1, 0]  # as timm has them
    for names, model, num_classes, words in [
            (['red', 'pink'], cfg, 3, "no class 'pink'"),
            (['a', 'b'], {}, 3, 'num_classes = 3, .* but the images have 2 classes'),
            (['red', 'green'], dict(label_names=('red', 'red', 'green')), 3, 'which are which cannot be told'),
            (['red', 'green'], dict(label_names=('red', 'green')), 3, 'which are which cannot be told')]:
        with pytest.raises(ValueError, match=words):
            outputs_of(names, model, num_classes)


# pictures

@pytest.mark.parametrize('dataset', ['', 'torch/image_folder'])
def test_every_format_that_can_be_read_is_counted(dataset, trained, pictures, capsys):
    words = ['--dataset', dataset] if dataset else []
    whole = validated(capsys, trained, pictures.parent, *words)[:3]
    for path, suffix in zip(sorted(pictures.rglob('*.png')), itertools.cycle(['.webp', '.TIFF', '.bmp', '.jp2'])):
        options = dict(lossless=True) if suffix == '.webp' else {}
        Image.open(path).save(path.with_suffix(suffix), **options)
        path.unlink()
    assert validated(capsys, trained, pictures.parent, *words)[:3] == whole == (0, whole[1], 24)


def test_what_is_left_out_is_said(tmp_path, trained, pictures, capsys, caplog):
    for name in ('1.heic', '2.heic', 'notes', '.hidden'):
        (pictures / 'class1' / name).write_text('no picture')
    (pictures / 'class9' / 'below').mkdir(parents=True)
    assert validated(capsys, trained, pictures.parent)[0] == 0
    assert caplog.messages == [
        f'no class is made of folders without a picture: {pictures}/class9',
        f'left out of {pictures}, as no pictures in a format that can be read: 2 .heic, 1 without a suffix']
    caplog.clear()
    shutil.copytree(pictures, pictures.parent / 'train')
    assert run_command(capsys, 'train', *train_words(tmp_path / 'out', pictures.parent, epochs=1))[0] == 0
    said = [message for message in caplog.messages if 'left out of' in message or 'no class' in message]
    assert len(said) == 4 and all(any(f'/{split}' in text for text in said) for split in ('train', 'validation'))


DAMAGES = {
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('<html>'),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:-600]),
    'range': lambda path: Image.fromarray(np.full((9, 9), 3e4, 'float32')).save(path, 'TIFF'),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize('dataset', ['', 'torch/image_folder'])
def test_no_picture_is_replaced_in_validation(damage, dataset, trained, pictures, capsys):
    words = ['--dataset', dataset] if dataset else []
    broken = pictures / 'class1' / '3.png'
    damage(broken)
    status, top1, _, text = validated(capsys, trained, pictures.parent, *words)
    assert (status, top1) == (1, None) and f'{broken} cannot be read as a picture' in text and '--skip-broken' in text
    status, top1, count, text = validated(capsys, trained, pictures.parent, *words, '--skip-broken')
    assert (status, count) == (0, 23) and top1 > 0 and '(1 broken ones left out)' in text and str(broken) in text


def test_broken_picture_in_a_worker_process(trained, pictures, capsys):
    """Its error crosses to this process as text; one line is left of that."""
    DAMAGES['cut'](pictures / 'class1' / '3.png')
    status, _, err = run_command(
        capsys, 'validate', '--model', f'local-dir:{trained / "aa_simplecnn.noise"}', '--data-dir', pictures.parent,
        '--workers', 1)
    assert status == 1 and err.startswith('aa-models validate: error: /') and len(err.splitlines()) == 1, err


def test_a_class_whose_name_is_no_unicode_is_refused(tmp_path, pictures, capsys):
    (pictures / 'class1').rename(pictures / os.fsdecode(b'caf\xe9'))
    shutil.copytree(pictures, pictures.parent / 'train')
    status, _, err = run_command(capsys, 'train', *train_words(tmp_path / 'out', pictures.parent))
    assert status == 2 and 'no Unicode: rename its folder' in err and not (tmp_path / 'out').exists()


def test_no_picture_is_replaced_in_training(tmp_path, capsys):
    data, output = make_pictures(tmp_path / 'data'), tmp_path / 'out'
    broken = data / 'train' / 'class1' / '3.png'
    DAMAGES['cut'](broken)
    words = train_words(output, data, epochs=1)
    status, _, err = run_command(capsys, 'train', *words)
    assert status == 1 and f'{broken} cannot be read as a picture' in err and not list(output.glob('*.pth.tar'))
    assert run_command(capsys, 'train', *words, '--skip-broken', '--overwrite')[0] == 0
    assert checkpoint_of(output)['args'].skip_broken


def test_networks_of_other_channels_are_refused(tmp_path, data, capsys):
    words = train_words(tmp_path / 'out', data, model_kwargs={**RECIPE['model_kwargs'], 'in_chans': 1})
    assert 'reads 1 channels, and datasets are read in 3' in refused(capsys, 'train', *words)
    assert not (tmp_path / 'out').exists()


def test_nothing_can_be_read(trained, pictures, capsys):
    for path in pictures.rglob('*.png'):
        path.write_bytes(b'')
    status, _, _, text = validated(capsys, trained, pictures.parent, '--skip-broken')
    assert status == 2 and 'none of the 24 pictures can be read' in text


@pytest.mark.parametrize('cache', [False, True])
def test_grey_arrays_are_read_in_colour(cache, tmp_path):
    """As torchvision has MNIST."""
    raw = tmp_path / 'data' / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 28, 28), 'uint8')
    for part in ('train', 't10k'):
        sizes = np.array([0x803, *pixels.shape], '>i4').tobytes(), np.array([0x801, 16], '>i4').tobytes()
        (raw / f'{part}-images-idx3-ubyte').write_bytes(sizes[0] + pixels.tobytes())
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(sizes[1] + bytes(i % 10 for i in range(16)))
    values = dict(dataset='torch/mnist', num_classes=10, device_cache=cache)
    assert checkpoint_of(run_training(tmp_path / 'out', tmp_path / 'data', **values))['epoch'] == 1


@pytest.mark.parametrize('dataset', ['', 'torch/image_folder'])
def test_pictures_in_floating_point_are_seen(dataset, trained, pictures, capsys):
    """As TIFF of values from 0 to 1 they are the pictures that they are in 8 bits."""
    for path in list(pictures.rglob('*.png')):
        grey = Image.open(path).convert('L')
        grey.save(path)
    eight_bits = validated(capsys, trained, pictures.parent)[:3]
    for path in list(pictures.rglob('*.png')):
        Image.fromarray(np.asarray(Image.open(path), 'float32') / 255).save(path.with_suffix('.tiff'))
        path.unlink()
    words = ['--dataset', dataset] if dataset else []
    assert validated(capsys, trained, pictures.parent, *words)[:3] == eight_bits and eight_bits[1] < 100
