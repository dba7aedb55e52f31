"""`aa-models attention`: what it prints and writes, and what it refuses."""
import sys
from pathlib import Path
from unittest import mock

import pytest
import timm
from matplotlib.figure import Figure
from PIL import Image

from command import answered, refused, run_command
from repository import TESTS

PICTURE = TESTS / 'pictures' / 'lion.png'


@pytest.fixture
def words(checkpoint, tmp_path, monkeypatch):
    """A command that can be answered; it writes into the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return ['attention', PICTURE, '--model', f'local-dir:{checkpoint}', '-o', 'seen.png']


@pytest.mark.parametrize('options, lines', [
    ([], ['stages.0.1.conv.attn: 8 heads on a map of 14 x 14, the query in row 7, column 7',
          'stages.1.1.conv.attn: 8 heads on a map of 7 x 7, the query in row 3, column 3']),
    (['--layer', 'stages.0.1.conv.attn', '--query', '31,8', '--img-size', '64'],
     ['stages.0.1.conv.attn: 8 heads on a map of 32 x 32, the query in row 8, column 31']),
])
def test_command(options, lines, words, capsys):
    assert answered(capsys, *words, '--device', 'cpu', *options).splitlines() == [*lines, 'wrote seen.png']
    with Image.open('seen.png') as picture:
        colours = picture.convert('RGB').getcolors(1 << 24)
        assert picture.format == 'PNG' and min(picture.size) > 300 and len(colours) > 100


@pytest.mark.parametrize('options, said', [
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
def test_wrong_options(options, said, words, tmp_path, capsys):
    err = refused(capsys, *words, *options)
    assert all(word in err for word in said) and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_plain_model(words, capsys):
    timm.models.save_for_hf(timm.create_model('simplecnn'), 'plain', safe_serialization=True)
    err = refused(capsys, *words, '--model', 'local-dir:plain')
    assert 'has no attention layer' in err and not Path('seen.png').exists()


def test_without_matplotlib(words, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    assert "pip install 'aa-models[plot]'" in refused(capsys, *words)


def test_a_full_disk(words, monkeypatch, capsys):
    monkeypatch.setattr(Figure, 'savefig', mock.Mock(side_effect=OSError(28, 'No space left on device')))
    status, out, err = run_command(capsys, *words)
    assert status == 1 and not out and 'seen.png' in err and 'No space left' in err
