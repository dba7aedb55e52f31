"""`aa-models convert`: a plain network with weights in, a folder with attention out."""
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError
from timm.models import save_for_hf

import aa_models
from aa_models.augmentation import conversion
from aa_models.cli import main
from aa_models.errors import WriteError
from aa_models.release import converted
from aa_models.release.folder import replacing
from found import augmented
from our_models import uneven


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """A folder with weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('plain')
    model = uneven(timm.create_model('resnet10t', num_classes=5, pretrained_cfg_overlay=dict(input_size=(3, 64, 64))))
    save_for_hf(model.eval(), str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Folders of noise."""
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for i in range(50):
        path = folder / f'class{i % 2}' / f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(path)
    return folder


OPTIONS = ['--augment', 'layer2.0.conv1', '--model-kwargs', 'dk=32', 'dv=64', 'num_heads=8']


def test_the_folder_is_the_network(plain, pictures, tmp_path, capsys):
    output = tmp_path / 'new'
    args = ['convert', f'local-dir:{plain}', *OPTIONS, '--images', str(pictures), '--output', str(output)]
    assert main.main(args) == 0
    printed = capsys.readouterr().out
    for fitted in ('layer2.0.conv1.attn', 'layer2.0.conv2'):
        before, after = re.search(f'layer2.0.conv1: {fitted} off by (.*) of its spread, fitted (.*)', printed).groups()
        assert float(after) < float(before)
    assert 'layer2.0.conv1: 64 of 128 channels are attention' in printed
    assert re.search(r'the class of the plain network on \d+\.\d% of 16 other pictures', printed), printed
    card = ModelCard.load(output / 'README.md')
    assert '| `layer2.0.conv1` | 64 of 128 |' in card.text and 'Calibrated with 34 pictures' in card.text
    model = timm.create_model(f'local-dir:{output}', pretrained=True).eval()
    layer, = augmented(model).values()
    assert (layer.dk, layer.dv) == (32, 64) and model.pretrained_cfg['architecture'] == 'augmented'
    # the same by hand
    base = timm.create_model(f'local-dir:{plain}', pretrained=True).eval()
    some, others = converted._divide(pictures, 300)
    assert len(some) == 34 and not {*some} & {*others}
    torch.manual_seed(0)
    by_hand = aa_models.augment(
        base, where='layer2.0.conv1', dk=32, dv=64, calibrate=converted._read(base, some))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), by_hand(x), rtol=1e-3, atol=1e-3)  # the tables' idle dimensions are drawn


def test_without_pictures(plain, tmp_path, capsys):
    output = tmp_path / 'new'
    assert main.main(['convert', f'local-dir:{plain}', *OPTIONS, '--output', str(output)]) == 0
    printed = capsys.readouterr().out
    assert 'off by' not in printed and 'the class of' not in printed and f'--model local-dir:{output}' in printed
    assert sorted(path.name for path in output.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    assert 'alibrated' not in (output / 'README.md').read_text()


@pytest.mark.parametrize('change, message', [
    (['--output', '{here}'], 'exists: choose another'),
    (['--output', '{this}/new'], "cannot be made: '.*test_convert.py' is no folder"),
    (['--images', '{few}'], 'holds 20 pictures, at least 32 are needed'),
    (['--images', '{none}'], 'does not exist'),
    (['--num-images', '3'], 'num_images must be at least 16, got 3'),
    (['--model-kwargs', 'depth=3'], "unexpected argument 'depth'"),
    (['--model-kwargs', 'where=3'], "unexpected argument 'where'"),
    (['--augment', 'stem.*'], r"where=\['stem.\*'\] chooses none"),
    (['--model-kwargs', 'dv=7'], 'dv=7 must be a positive multiple of num_heads'),
])
def test_what_cannot_be_done_is_said_first(plain, pictures, tmp_path, capsys, change, message):
    few = tmp_path / 'few'
    few.mkdir()
    for path in sorted(pictures.rglob('*.png'))[:20]:
        (few / path.name).symlink_to(path)
    words = {'here': tmp_path, 'few': few, 'none': tmp_path / 'none', 'this': __file__}
    args = ['convert', f'local-dir:{plain}', *OPTIONS, '--output', str(tmp_path / 'new')]
    assert main.main(args + [word.format(**words) for word in change]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['few']


@pytest.mark.parametrize('name, words', [('link', 'is a link to a place'), (b'caf\xe9', 'name that is no Unicode')])
def test_a_place_that_cannot_be_is_said_first(plain, tmp_path, capsys, monkeypatch, name, words):
    monkeypatch.setattr(converted, 'build_model', lambda *args, **kwargs: pytest.fail('a model was built'))
    output = tmp_path / os.fsdecode(name)
    if name == 'link':
        output.symlink_to('nowhere')
    assert main.main(['convert', f'local-dir:{plain}', *OPTIONS, '--output', str(output)]) == 2
    assert words in capsys.readouterr().err


def test_a_full_disk(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(converted, 'save_folder', mock.Mock(side_effect=SafetensorError('I/O error: File too large')))
    assert main.main(['convert', f'local-dir:{plain}', *OPTIONS, '--output', str(tmp_path / 'new')]) == 1
    err = capsys.readouterr().err
    assert "new' cannot be written: I/O error: File too large" in err and 'Traceback' not in err
    assert not list(tmp_path.iterdir())


def test_a_layer_that_a_pass_does_not_run_stays(plain, tmp_path, capsys, monkeypatch):
    trace = conversion.trace_map_sizes
    monkeypatch.setattr(conversion, 'trace_map_sizes', lambda *args: {
        name: size for name, size in trace(*args).items() if name != 'layer3.0.conv1'})
    where = ['--augment', 'layer[23].0.conv1', '--output', str(tmp_path / 'new')]
    assert main.main(['convert', f'local-dir:{plain}', *OPTIONS, *where]) == 0
    printed = capsys.readouterr().out
    assert 'layer2.0.conv1: 64 of 128 channels are attention' in printed and 'layer3' not in printed


def test_a_name_without_weights(tmp_path, capsys):
    assert main.main(['convert', 'aa_resnet152', *OPTIONS, '--output', str(tmp_path / 'new')]) == 2
    assert 'weights' in capsys.readouterr().err


@pytest.mark.parametrize('new', [True, False])
def test_two_that_write_one_folder(tmp_path, new):
    """The second waits for the first, then replaces its folder whole, or leaves it where it may not."""
    begun, written = threading.Event(), threading.Event()

    def first():
        with replacing(tmp_path / 'one') as part:
            begun.set()
            written.wait(30)
            (part / 'first').touch()

    def second():
        begun.wait(30)
        written.set()
        with replacing(tmp_path / 'one', new) as part:
            (part / 'second').touch()

    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(first), pool.submit(second)]
    assert ends[0].exception() is None
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')] == [
        'one', 'one/first' if new else 'one/second']
    assert 'exists: choose another' in str(ends[1].exception()) if new else ends[1].exception() is None


def test_the_earlier_folder_comes_back(tmp_path, monkeypatch):
    (tmp_path / 'one' / 'file').mkdir(parents=True)
    rename = Path.rename

    def fail(path, target):
        if path.name == '.one.part':
            raise OSError('no')
        return rename(path, target)
    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(WriteError, match="one' cannot be written: no"), replacing(tmp_path / 'one'):
        pass
    assert [path.name for path in tmp_path.rglob('*')] == ['one', 'file']


def test_an_interrupted_conversion_leaves_nothing(plain, tmp_path, monkeypatch):
    def interrupted(model, folder, **kwargs):
        save_for_hf(model, folder, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(converted, 'save_folder', interrupted)
    assert main.main(['convert', f'local-dir:{plain}', *OPTIONS, '--output', str(tmp_path / 'new')]) == 130
    assert not list(tmp_path.iterdir())
