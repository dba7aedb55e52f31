"""`aa-models attention`: the picture, the page, and what keeps them from being drawn."""
import shutil
import sys
from unittest import mock

import pytest
from matplotlib.figure import Figure
from PIL import Image

from command import answered, refused, run_command
from fake_weights import NAME
from repository import LION


@pytest.fixture
def attention(folder, tmp_path, monkeypatch):
    """The words of a command that can be answered; it writes into the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return ['attention', LION, '--model', NAME, '-o', 'seen.png']


@pytest.mark.parametrize('options, lines', [
    ([], ['stages.0.1.conv.attn: 8 heads on a map of 14 x 14, the query in row 7, column 7',
          'stages.1.1.conv.attn: 8 heads on a map of 7 x 7, the query in row 3, column 3']),
    (['--layer', 'stages.0.1.conv.attn', '--query', '31,8', '--img-size', '64'],
     ['stages.0.1.conv.attn: 8 heads on a map of 32 x 32, the query in row 8, column 31']),
])
def test_attention(options, lines, attention, capsys):
    status, out, err = run_command(capsys, *attention, '--device', 'cpu', *options)
    assert (status, out.splitlines(), err) == (0, [*lines, 'wrote seen.png'], '')
    with Image.open('seen.png') as picture:
        colours = picture.convert('RGB').getcolors(1 << 24)
        assert picture.format == 'PNG' and min(picture.size) > 300 and len(colours) > 100


@pytest.mark.parametrize('options, said', [
    (['--query', '32,0'], ['--query 32,0', '32 x 32']),
    (['--query=-1,0'], ['--query -1,0', '32 x 32']),
    (['--img-size', '100000'], ['pixels would take more bytes than can be counted', 'AA_MODELS_MAX_GB']),
    (['--img-size', '5000'], ['would take at least', 'AA_MODELS_MAX_GB']),
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
    (['--html', 'seen.html'], ['--html', 'not allowed with', '-o']),
])
def test_attention_wrong_options(options, said, attention, tmp_path, capsys):
    err = refused(capsys, *attention, *options)
    assert all(word in err for word in said) and not list(tmp_path.iterdir())
    assert len(err.splitlines()) == 1 or err.startswith('usage:')


@pytest.fixture
def attention_page(attention):
    """The words of a command that writes a page, without matplotlib."""
    with mock.patch.dict(sys.modules, {'matplotlib': None, 'matplotlib.figure': None}):
        yield [*attention[:-2], '--html', 'seen.html']


@pytest.mark.parametrize('options, lines', [
    ([], ['stages.0.1.conv.attn: 8 heads on a map of 14 x 14', 'stages.1.1.conv.attn: 8 heads on a map of 7 x 7']),
    (['--layer', 'stages.0.*', '--query', '31,8', '--img-size', '64'],
     ['stages.0.1.conv.attn: 8 heads on a map of 32 x 32, in blocks of 2 x 2 cells']),
])
def test_attention_page(options, lines, attention_page, tmp_path, capsys):
    out = answered(capsys, *attention_page, '--device', 'cpu', *options)
    assert out.splitlines() == [*lines, 'wrote seen.html']
    assert [path.name for path in tmp_path.iterdir()] == ['seen.html']
    text = (tmp_path / 'seen.html').read_text(encoding='utf-8')
    assert f'<title>What {NAME} looks at: lion.png</title>' in text and len(text) < 5e6
    assert f'"start":[{options[3] if options else "16,16"}]' in text and str(LION.parent) not in text


@pytest.mark.parametrize('options, said', [
    (['--html', 'seen.png'], ['html', 'seen.png', '.html']),
    (['--html', 'nowhere/seen.html'], ['nowhere', 'does not exist']),
    (['--html', 'folder.html'], ['folder.html', 'is a folder']),
    (['--html', ''], ['is no path']),
    (['--query', '32,0'], ['--query 32,0', '32 x 32']),
    (['--layer', 'stages.9'], ['--layer', 'stages.9', 'stages.0.1.conv.attn']),
])
def test_attention_page_wrong_options(options, said, attention_page, tmp_path, capsys):
    (tmp_path / 'folder.html').mkdir()
    err = refused(capsys, *attention_page, *options)
    assert all(word in err for word in said) and [path.name for path in tmp_path.iterdir()] == ['folder.html']


@pytest.mark.parametrize('fails', ['os.replace', 'os.fsync'])
def test_attention_page_and_a_full_disk(fails, attention_page, tmp_path, monkeypatch, capsys):
    """The page of before stays, and no part of the new one does."""
    (tmp_path / 'seen.html').write_text('before')
    monkeypatch.setattr(fails, mock.Mock(side_effect=OSError(28, 'No space left on device')))
    status, out, err = run_command(capsys, *attention_page)
    assert status == 1 and not out and 'seen.html' in err and 'No space left' in err
    assert [path.name for path in tmp_path.iterdir()] == ['seen.html']
    assert (tmp_path / 'seen.html').read_text() == 'before'


def test_limit_of_memory_can_be_moved(attention, monkeypatch, capsys):
    for limit, status in (('0.0001', 2), ('1', 0), ('much', 2)):
        monkeypatch.setenv('AA_MODELS_MAX_GB', limit)
        assert run_command(capsys, *attention, '--device', 'cpu')[0] == status


def test_without_matplotlib(attention, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    assert "pip install 'aa-models[plot]'" in refused(capsys, *attention)


def test_a_full_disk(attention, tmp_path, monkeypatch, capsys):
    """A half is written; the picture of before stays."""
    def fill(figure, path, **options):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    (tmp_path / 'seen.png').write_bytes(b'before')
    monkeypatch.setattr(Figure, 'savefig', fill)
    status, out, err = run_command(capsys, *attention)
    assert status == 1 and not out and 'seen.png' in err and 'No space left' in err
    assert [path.name for path in tmp_path.iterdir()] == ['seen.png']
    assert (tmp_path / 'seen.png').read_bytes() == b'before'


def test_a_kind_of_picture_that_needs_another_program(attention, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Figure, 'savefig', mock.Mock(side_effect=RuntimeError('xelatex not found')))
    assert "output = 'seen.png' cannot be drawn: xelatex not found" in refused(capsys, *attention)
    assert not list(tmp_path.iterdir())


def test_a_title_that_looks_like_a_formula(attention, folder, tmp_path, capsys):
    strange = shutil.copytree(folder, tmp_path / 'a$b_{ $c')
    words = [word if word != NAME else strange for word in attention]
    assert 'wrote seen.png' in answered(capsys, *words, '--device', 'cpu')
