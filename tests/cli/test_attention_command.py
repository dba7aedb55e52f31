"""`aa-models attention`: what it prints and writes, and what it refuses."""
import sys

import pytest
import timm
from matplotlib.figure import Figure
from PIL import Image

from command import run_command
from fake_weights import save_checkpoint
from repository import TESTS

PICTURE = TESTS / 'pictures' / 'lion.png'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A checkpoint of two layers, as `--model` takes it."""
    folder = tmp_path_factory.mktemp('weights') / 'aa_simplecnn'
    save_checkpoint(folder)
    return f'local-dir:{folder}'


@pytest.mark.parametrize('options, lines', [
    ([], ['stages.0.1.conv.attn: 8 heads on a map of 14 x 14, the query in row 7, column 7',
          'stages.1.1.conv.attn: 8 heads on a map of 7 x 7, the query in row 3, column 3']),
    (['--layer', 'stages.0.1.conv.attn', '--query', '31,8', '--img-size', '64'],
     ['stages.0.1.conv.attn: 8 heads on a map of 32 x 32, the query in row 8, column 31']),
])
def test_command(options, lines, model, tmp_path, capsys):
    output = tmp_path / 'seen.png'
    status, out, err = run_command(
        capsys, 'attention', PICTURE, '--model', model, '-o', output, '--device', 'cpu', *options)
    assert (status, out.splitlines(), err) == (0, [*lines, f'wrote {output}'], '')
    with Image.open(output) as picture:
        colours = picture.convert('RGB').getcolors(1 << 24)
        assert picture.format == 'PNG' and min(picture.size) > 300 and len(colours) > 100


@pytest.mark.parametrize('options, words', [
    (['--query', '32,0'], ['--query 32,0', '32 x 32']),
    (['--query=-1,0'], ['--query -1,0', '32 x 32']),
    (['--query', '3'], ["X,Y", "'3'"]),
    (['--query', '3,4.5'], ["X,Y", "'3,4.5'"]),
    (['--img-size', '0'], ['--img-size', '0']),
    (['--layer', 'stages.9'], ['--layer', 'stages.9', 'stages.0.1.conv.attn']),
    (['--layer', '*'], ['--layer', 'one', 'stages.0.1.conv.attn', 'stages.1.1.conv.attn']),
    (['--layer', ''], ['--layer', 'stages.0.1.conv.attn']),
    (['--model', 'aa_resnet19'], ['aa_resnet19', 'did you mean']),
    (['--device', 'toaster'], ['--device', 'toaster']),
    (['-o', 'seen.docx'], ['seen.docx', '.png']),
    (['-o', 'nowhere/seen.png'], ['nowhere', 'does not exist']),
])
def test_wrong_options(options, words, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, out, err = run_command(capsys, 'attention', PICTURE, '--model', model, *options)
    assert status == 2 and not out and all(word in err for word in words) and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_wrong_pictures(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: pytest.fail('a model was built before the check'))
    no_picture = tmp_path / 'notes.png'
    no_picture.write_text('not a picture')
    missing = tmp_path / 'nothing.png'
    for path, word in ((no_picture, 'notes.png'), (missing, 'nothing.png'), (PICTURE.parent, 'folder')):
        status, out, err = run_command(capsys, 'attention', path, '--model', model, '-o', tmp_path / 'seen.png')
        assert status == 2 and not out and word in err and not (tmp_path / 'seen.png').exists()


def test_plain_model(tmp_path, capsys):
    timm.models.save_for_hf(timm.create_model('simplecnn'), tmp_path / 'plain', safe_serialization=True)
    status, out, err = run_command(
        capsys, 'attention', PICTURE, '--model', f'local-dir:{tmp_path / "plain"}', '-o', tmp_path / 'seen.png')
    assert status == 2 and not out and 'has no attention layer' in err and not (tmp_path / 'seen.png').exists()


def test_without_matplotlib(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    status, out, err = run_command(capsys, 'attention', PICTURE, '--model', model, '-o', tmp_path / 'seen.png')
    assert status == 2 and not out and "pip install 'aa-models[plot]'" in err


def test_a_full_disk(model, monkeypatch, tmp_path, capsys):
    def fail(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Figure, 'savefig', fail)
    status, out, err = run_command(capsys, 'attention', PICTURE, '--model', model, '-o', tmp_path / 'seen.png')
    assert status == 1 and not out and 'seen.png' in err and 'No space left' in err
