"""Pictures in streams and tables that cannot be read: named, or counted out; never replaced by others."""
import io
import json
import pickle
import re
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image
from torch.utils.data import IterableDataset

from aa_models.training.datasets import open_dataset
from command import run_command
from training_runs import checkpoint_of, run_training, train_words

CLASSES, EACH = 3, 8


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data):
    """A run of class0, class1 and class2 that has learned something."""
    return run_training(tmp_path_factory.mktemp('trained') / 'out', data, '--tag', 'noise', epochs=4, lr=0.2)


def samples_of(folder):
    """Content and label of each picture of a folder of class folders."""
    return [(path.read_bytes(), label) for label in range(CLASSES) for path in sorted(folder.glob(f'class{label}/*'))]


def write_shards(root, split, samples, count=2):
    """The samples as tars, and what timm reads of them in `_info.json`."""
    names, lengths = [f'{split}-{number}.tar' for number in range(count)], []
    for number, name in enumerate(names):
        own = samples[number::count]
        lengths.append(len(own))
        with tarfile.open(root / name, 'w') as tar:
            for index, (content, label) in enumerate(own):
                for suffix, data in (('png', content), ('cls', str(label).encode())):
                    info = tarfile.TarInfo(f'{number}{index:03}.{suffix}')
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    file = root / '_info.json'
    info = json.loads(file.read_text()) if file.exists() else dict(splits={})
    info['splits'][split] = dict(
        name=split, num_samples=len(samples), filenames=names, shard_lengths=lengths)
    file.write_text(json.dumps(info))


def write_table(root, split, samples):
    import datasets
    features = datasets.Features(dict(
        image=datasets.Image(), label=datasets.ClassLabel(names=[f'class{i}' for i in range(CLASSES)])))
    rows = dict(image=[dict(bytes=content, path=f'{index}.png') for index, (content, _) in enumerate(samples)],
                label=[label for _, label in samples])
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f'{split}-00000-of-00001.parquet')


@pytest.fixture(params=['wds', 'hfds'])
def kind(request, tmp_path, monkeypatch):
    """A kind of dataset: its name for `--dataset`, where it is, and what writes a split of it."""
    pytest.importorskip('webdataset' if request.param == 'wds' else 'datasets')
    root = tmp_path / 'root'
    root.mkdir()
    if request.param == 'wds':
        return 'wds/pictures', root, lambda split, samples: write_shards(root, split, samples)
    (tmp_path / 'cache').mkdir()
    return f'hfds/{root}', tmp_path / 'cache', lambda split, samples: write_table(root, split, samples)


def validated(capsys, trained, dataset, root, *words):
    """Exit status, top-1 in percent, number of pictures and all that was said."""
    status, out, err = run_command(
        capsys, 'validate', '--model', f'local-dir:{trained / "aa_simplecnn.noise"}', '--dataset', dataset,
        '--data-dir', root, '--workers', 0, *words)
    found = re.search(r'top-1 (\S+) % .* of (\d+) images', out)
    return status, *((float(found[1]), int(found[2])) if found else (None, None)), out + err


def said_in_one_line(text):
    return len([line for line in text.splitlines() if '/s]' not in line and line.strip()]) == 1  # bars of `datasets`


def grey(content, kind):
    """A picture in grey values of 8 or 16 bits."""
    pixels, file = np.asarray(Image.open(io.BytesIO(content)).convert('L')), io.BytesIO()
    Image.fromarray(pixels if kind == 8 else pixels.astype('uint16') * 257).save(file, 'PNG')
    return file.getvalue()


DAMAGES = {
    'empty': lambda content: b'',
    'cut': lambda content: content[:-600],
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_no_picture_is_replaced_in_validation(damage, kind, trained, data, capsys):
    dataset, root, write = kind
    samples = samples_of(data / 'validation')
    write('validation', samples)
    whole = validated(capsys, trained, dataset, root)
    folder = run_command(capsys, 'validate', '--model', f'local-dir:{trained / "aa_simplecnn.noise"}',
                         '--data-dir', data, '--workers', 0)[1]
    assert whole[:1] + whole[2:3] == (0, 24) and f'top-1 {whole[1]:.3f} %' in folder
    samples[9] = damage(samples[9][0]), samples[9][1]
    write('validation', samples)
    status, top1, _, text = validated(capsys, trained, dataset, root)
    name = f'1004 in {root}/validation-1.tar' if 'wds' in dataset else '(row 9)'
    assert (status, top1) == (1, None) and f'{name} cannot be read as a picture' in text and '--skip-broken' in text
    assert said_in_one_line(text), text
    status, top1, count, text = validated(capsys, trained, dataset, root, '--skip-broken')
    assert (status, count) == (0, 23) and '(1 broken ones left out)' in text and name in text
    status, _, _, text = validated(capsys, trained, dataset, root, '--workers', 1)  # its error crosses as text
    assert status == 1 and said_in_one_line(text) and name in text


def test_no_picture_is_replaced_in_training(kind, data, tmp_path, capsys, caplog):
    dataset, root, write = kind
    samples = samples_of(data / 'train')
    write('validation', samples_of(data / 'validation'))
    samples[9] = samples[9][0][:-600], samples[9][1]
    write('train', samples)
    output = tmp_path / 'out'
    words = [*train_words(output, root, epochs=1, dataset=dataset, num_classes=3, workers=1), '--tag', 'noise']
    status, _, err = run_command(capsys, 'train', *words)
    assert status == 1 and 'cannot be read as a picture' in err and not list(output.glob('*.pth.tar')), err
    assert run_command(capsys, 'train', *words, '--skip-broken', '--overwrite')[0] == 0
    assert checkpoint_of(output)['args'].skip_broken and 'train: 1 broken pictures are left out, ' in caplog.text


def test_nothing_can_be_read(kind, trained, data, capsys):
    dataset, root, write = kind
    write('validation', [(b'', label) for _, label in samples_of(data / 'validation')])
    status, _, _, text = validated(capsys, trained, dataset, root, '--skip-broken')
    assert status == 2 and 'none of the 24 pictures can be read' in text


def pictures_of(dataset, root):
    opened = open_dataset(dataset, str(root), 'validation')
    samples = opened if isinstance(opened, IterableDataset) else map(opened.__getitem__, range(len(opened)))
    return [np.asarray(picture) for picture, _ in samples]


def test_pictures_of_16_bits_are_seen(kind, data):
    dataset, root, write = kind
    seen = []
    for bits in (8, 16):
        write('validation', [(grey(content, bits), label) for content, label in samples_of(data / 'validation')])
        seen.append(pictures_of(dataset, root))
    assert np.ptp(seen[0]) > 100 and np.array_equal(*seen)


def test_label_that_the_model_does_not_have(kind, trained, data, capsys):
    dataset, root, write = kind
    if 'hfds' in dataset:
        pytest.skip('names of classes are compared there')
    samples = samples_of(data / 'validation')
    samples[3] = samples[3][0], 7
    write('validation', samples)
    status, _, _, text = validated(capsys, trained, dataset, root)
    assert status == 2 and 'num_classes = 3, but there is an image with the label 7' in text
    status, _, _, text = validated(capsys, trained, dataset, root, '--workers', 1)
    assert status == 2 and said_in_one_line(text), text


@pytest.fixture
def stream(tmp_path, data):
    pytest.importorskip('webdataset')
    write_shards(tmp_path, 'validation', samples_of(data / 'validation'))
    return tmp_path


@pytest.mark.parametrize('left, words', [
    (0.5, 'part of it is missing'), (0, 'part of it is missing'), ('text', 'part of it is missing'),
    (None, 'No such file')])
def test_shard_that_is_cut(left, words, stream, trained, capsys):
    shard = stream / 'validation-0.tar'
    content = shard.read_bytes()
    if left is None:
        shard.unlink()
    else:
        shard.write_bytes(b'<html>' if left == 'text' else content[:int(left * len(content))])
    for options in ([], ['--skip-broken']):
        status, top1, _, text = validated(capsys, trained, 'wds/pictures', stream, *options)
        assert status == 1 and top1 is None and str(shard) in text and words in text, text
        assert said_in_one_line(text)


def test_stream_of_datasets(trained, data, tmp_path, capsys):
    """Its pictures have no names; they are not passed over either."""
    pytest.importorskip('datasets')
    samples = samples_of(data / 'validation')
    names = {str(label): f'class{label}' for label in range(CLASSES)}
    info = dict(
        features=[dict(name='image', dtype='image'), dict(name='label', dtype=dict(class_label=dict(names=names)))],
        splits=[dict(name='validation', num_bytes=1, num_examples=len(samples))])
    for broken in (False, True):
        root = tmp_path / str(broken)
        root.mkdir()
        (root / 'README.md').write_text(f'---\n{yaml.safe_dump(dict(dataset_info=info))}---\n')
        write_table(root, 'validation', [
            (b'' if broken and index == 9 else grey(content, 16), label)
            for index, (content, label) in enumerate(samples)])
    expected = [np.asarray(Image.open(io.BytesIO(content)).convert('L').convert('RGB')) for content, _ in samples]
    assert np.array_equal(pictures_of(f'hfids/{tmp_path / "False"}', tmp_path), expected)
    status, top1, _, text = validated(capsys, trained, f'hfids/{tmp_path / "True"}', tmp_path)
    assert (status, top1) == (1, None) and 'after 9 pictures of the stream comes what cannot be read' in text, text
    status, _, _, text = validated(capsys, trained, f'hfids/{tmp_path / "True"}', tmp_path, '--skip-broken')
    assert status == 2 and 'of other streams each picture counts' in text


def test_sample_without_a_label_or_twice(stream, trained, capsys):
    shard = stream / 'validation-0.tar'
    for members, words in ([['a.png'], "it has no 'cls'"], [['a.cls', 'a.cls'], 'duplicate']):
        with tarfile.open(shard, 'w') as tar:
            for name in members:
                tar.addfile(tarfile.TarInfo(name))
        status, top1, _, text = validated(capsys, trained, 'wds/pictures', stream)
        assert status == 1 and top1 is None and words in text and said_in_one_line(text), text


def test_corruptions_of_a_stream(stream, capsys):
    pytest.importorskip('imagecorruptions')
    status, _, err = run_command(
        capsys, 'corruptions', 'aa_simplecnn.cifar100', '--dataset', 'wds/pictures', '--data-dir', stream,
        '-o', stream / 'table.csv')
    assert status == 2 and "a dataset with random access, not 'wds/pictures'" in err


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_datasets_travel_to_worker_processes(name, data):
    """Where processes are not forked, as on macOS and Windows, they are pickled."""
    picture, _ = pickle.loads(pickle.dumps(open_dataset(name, str(data), 'validation')))[0]
    assert picture.mode == 'RGB'
