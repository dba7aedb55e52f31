"""The command line: its answers, its errors and their exit statuses."""
import csv
import io
import json
import logging
import math
import os
import shutil
import struct
import subprocess
import sys
from subprocess import PIPE, Popen
from unittest import mock

import pytest
import timm
from matplotlib.figure import Figure
from PIL import Image
from timm.data import ImageNetInfo

from aa_models import errors
from aa_models.analysis.prediction import predict
from aa_models.analysis.zoo_table import measure_zoo
from aa_models.cli import main as cli
from aa_models.cli.options import key_value
from aa_models.data.pictures import find_pictures
from aa_models.zoo import own_models, read_zoo
from command import answered, refused, run_command
from fake_weights import LABELS, NAME, NAME_TAG, NUM_CLASSES, registered, save_checkpoint
from repository import TESTS

PICTURES = TESTS / 'pictures'
LION = PICTURES / 'lion.png'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Folder of a small checkpoint, whose tag is registered and found."""
    folder = tmp_path_factory.mktemp('weights') / NAME_TAG
    with registered(save_checkpoint(folder)), pytest.MonkeyPatch.context() as patch:
        patch.setenv('AA_MODELS_WEIGHTS', str(folder.parent))
        yield folder


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: pytest.fail('a model was built before the check'))


@pytest.mark.parametrize('arguments', [[], ['predict'], ['no_such_command'], ['list', '--no-such-option']])
def test_wrong_usage(arguments, capsys):
    assert 'usage: aa-models' in refused(capsys, *arguments)


@pytest.mark.parametrize('words, said', [
    (['train', 'finetune', '--output', 'o', '--modle', 'x'], 'unknown option --modle; did you mean --model?'),
    (['predict', 'a.png', '--treshold=1'], 'unknown option --treshold; did you mean --threshold?'),
    (['benchmark', 'layer', '--chanels', '3'], 'unknown option --chanels; did you mean --channels?'),
    (['list', '--zzz'], 'unknown option --zzz\n'),
])
def test_unknown_option_names_the_nearest(words, said, capsys):
    err = refused(capsys, *words)
    assert said in err and f'usage: aa-models {words[0]} ' in err


@pytest.mark.parametrize('error, status', [
    (errors.InputError, 2), (errors.InputTypeError, 2), (errors.NoSuchFileError, 2), (errors.WeightsError, 2),
    (errors.WriteError, 1), (errors.HubError, 1), (errors.HubWeightsError, 1), (errors.DivergenceError, 1),
    (KeyboardInterrupt, 130),
])
def test_exit_status(error, status, capsys, monkeypatch):
    monkeypatch.setattr('aa_models.cli.list.run', mock.Mock(side_effect=error('x')))
    assert run_command(capsys, 'list') == (status, '', '' if status == 130 else 'aa-models list: error: x\n')


@pytest.mark.parametrize('error', [ValueError, TypeError, RuntimeError, OSError, FileNotFoundError, ArithmeticError])
def test_a_fault_of_ours_keeps_its_traceback(error, capsys, monkeypatch):
    monkeypatch.setattr('aa_models.cli.list.run', mock.Mock(side_effect=error('x')))
    with pytest.raises(error):
        run_command(capsys, 'list')


def test_reader_that_leaves():
    """`aa-models list | head` ends without a complaint."""
    process = Popen([sys.executable, '-m', 'aa_models', 'list', NAME], stdout=PIPE, stderr=PIPE)
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 0


@pytest.mark.parametrize('redirection, status, said', [
    ('>&-', 0, ''), ('>&- 2>&-', 0, ''), ('2>&-', 0, NAME),
    ('>/dev/full', 1, 'aa-models list: error: standard output cannot be written: No space left on device\n'),
])
def test_streams_that_cannot_be_written(redirection, status, said):
    command = f'exec {sys.executable} -m aa_models list {NAME} {redirection}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout + done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('encoding, word', [('ascii', r'\u4e2d'), ('latin-1', r'\u4e2d'), ('utf-8', '中')])
def test_output_in_any_encoding_and_nothing_that_a_terminal_obeys(encoding, word, capsys, monkeypatch):
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(bytes_, encoding))
    monkeypatch.setattr('aa_models.cli.list.run', lambda args: print('中 \x1b[31mred\x07\t\u202e') or 0)
    assert cli.main(['list']) == 0
    assert bytes_.getvalue().decode(encoding) == f'{word} \\x1b[31mred\\x07\t\\u202e\n'
    monkeypatch.setattr('aa_models.cli.list.run', mock.Mock(side_effect=errors.InputError('\x1b]0;title\x07')))
    assert cli.main(['list']) == 2 and r'error: \x1b]0;title\x07' in capsys.readouterr().err


def test_nothing_that_a_terminal_obeys_in_errors_and_the_log(tmp_path, capsys, caplog, monkeypatch):
    log = logging.getLogger('aa_models')
    monkeypatch.setattr('aa_models.cli.list.run', lambda args: log.warning('class %s', '\x1b[31m') or 0)
    assert cli.main(['list']) == 0 and caplog.messages == [r'class \x1b[31m']
    logging.lastResort.handle(logging.makeLogRecord(dict(levelno=logging.ERROR, msg='\x07')))  # where nobody set up one
    assert capsys.readouterr().err == '\\x07\n'
    assert r'\x1b[31m' in refused(capsys, 'list', '--\x1b[31m')


def test_interrupted_while_it_starts(monkeypatch):
    monkeypatch.setattr('aa_models.cli.main._parser', mock.Mock(side_effect=KeyboardInterrupt))
    assert cli.main(['list']) == 130


@pytest.mark.parametrize('words', [
    ['predict', ''], ['attention', ''], ['validate', '--model', NAME, '--data-dir', ''], ['curves', '', '-o', 'a.png'],
    ['train', 'finetune', '--output', ''], ['pack', ''], ['export', NAME, '--format', 'onnx', '-o', ''],
    ['convert', NAME, '--augment', '*', '--output', ''], ['predict', 'a\0b'],
])
def test_word_that_is_no_path(words, no_model, capsys):
    """The empty one would be the current folder."""
    assert 'is no path' in refused(capsys, *words)


@pytest.mark.parametrize('text, value', [
    ('3', 3), ('0.5', 0.5), ('None', None), ('true', True), ('False', False), ("['*qkv', 'b']", ['*qkv', 'b']),
    ('sincos', 'sincos'), ('[*qkv]', '[*qkv]'), ('a=b', 'a=b')])
def test_key_and_value(text, value):
    assert key_value(f'name={text}') == ('name', value)


def test_list(capsys):
    header, *rows = [line.split() for line in answered(capsys, 'list').splitlines()]
    assert header == ['model', 'params', 'input', 'classes', 'weights']
    assert [(row[0], *row[3:5], ' '.join(row[5:])) for row in rows] == [
        (row.name, row.input_size, str(row.num_classes), row.weights) for row in read_zoo()]
    for first, *last in (('aa_resnet50', '-'), ('aa_resnet50.from_a1_in1k', 'to', 'fine-tune')):
        assert [first, '25.81', 'M', '3x224x224', '1000', *last] in rows
    pretrained = answered(capsys, 'list', '--pretrained').splitlines()[1:]
    assert [row.split()[0] for row in pretrained] == own_models(pretrained=True)


@pytest.mark.parametrize('filter, count', [
    ('wrn', 9), ('aa_resnet1*', 10), ('aa_resnet18', 7), ('aa_resnet34', 2), ('*.cifar100', 7), ('aa_simplecnn', 4),
])
def test_list_filter(filter, count, capsys):
    assert len(answered(capsys, 'list', filter).splitlines()) == count + 1


def test_zoo_file_is_true():
    assert read_zoo() == measure_zoo(), 'write aa_models/zoo.csv again: python -m aa_models.analysis.zoo_table'


@pytest.mark.parametrize('top', [3, 99])
def test_predict_json(top, folder, capsys):
    answers, (alone,) = (
        json.loads(answered(capsys, 'predict', path, '--model', NAME, '--json', '--top', top))
        for path in (PICTURES, LION))
    assert [a['file'] for a in answers] == [str(p) for p in find_pictures([PICTURES])]
    assert alone in answers  # whatever the others are
    for answer in answers:
        guesses, probabilities = answer['predictions'], [g['probability'] for g in answer['predictions']]
        assert len(guesses) == min(top, NUM_CLASSES) and all(LABELS[g['index']] == g['label'] for g in guesses)
        assert probabilities == sorted(probabilities, reverse=True)
        assert math.isclose(sum(probabilities), 1, abs_tol=1e-6) == (top > NUM_CLASSES)


def test_predict_text(folder, capsys):
    lines = answered(capsys, 'predict', LION, PICTURES / 'castle.png', '--model', NAME_TAG).splitlines()
    assert len(lines) == 2 * 6 and lines[0] == str(LION)
    assert all(line.split()[0].endswith('%') and line.split()[1] in LABELS for line in lines[1:6])


@pytest.mark.parametrize('batch_size', [1, 2])
def test_predict_goes_on_past_what_is_broken(batch_size, folder, tmp_path, capsys):
    for number, content in enumerate([*BROKEN, LION.read_bytes()]):
        (tmp_path / f'{number}.png').write_bytes(content)
    words = ['predict', tmp_path, LION, '--model', NAME, '--batch-size', batch_size]
    status, out, err = run_command(capsys, *words, '--json')
    assert status == 1 and [answer['file'] for answer in json.loads(out)] == [str(tmp_path / '3.png'), str(LION)]
    assert [str(tmp_path / f'{number}.png') in line for number, line in enumerate(err.splitlines())] == 3 * [True]
    status, out, _ = run_command(capsys, 'predict', tmp_path / '0.png', '--model', NAME, '--json')
    assert status == 1 and json.loads(out) == []


def test_a_picture_too_long_to_be_resized_holds_nobody_up(folder, tmp_path, capsys):
    Image.new('RGB', (200_000, 1)).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(LION.read_bytes())
    with mock.patch.dict(os.environ, AA_MODELS_MAX_GB='0.5'):
        status, out, err = run_command(capsys, 'predict', tmp_path, '--model', NAME, '--json')
    assert status == 1 and [answer['file'] for answer in json.loads(out)] == [str(tmp_path / 'b.png')]
    assert 'a picture of 200000 × 1 pixels, resized would take at least' in err and len(err.splitlines()) == 1


@pytest.mark.parametrize('error', [RuntimeError, TypeError, KeyError, ZeroDivisionError, struct.error])
def test_what_a_decoder_raises(error, folder, monkeypatch, capsys):
    """Those of some formats let all kinds of errors through."""
    monkeypatch.setattr(Image.Image, 'load', mock.Mock(side_effect=[error('broken inside'), *[mock.DEFAULT] * 99]))
    monkeypatch.setattr(Image.Image, 'convert', lambda picture, mode: Image.new(mode, (40, 40)))
    status, out, err = run_command(capsys, 'predict', LION, LION, '--model', NAME, '--json')
    assert status == 1 and len(json.loads(out)) == 1 and 'cannot be read as a picture' in err


def test_predict_csv_and_threshold(folder, tmp_path, capsys):
    words = ['predict', PICTURES, '--model', NAME]
    expected = json.loads(answered(capsys, *words, '--json'))
    probabilities = sorted(guess['probability'] for answer in expected for guess in answer['predictions'])
    threshold = probabilities[len(probabilities) // 2]
    assert answered(capsys, *words, '--csv', '--threshold', threshold, '--output', tmp_path / 'a.csv') == ''
    with (tmp_path / 'a.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['file'], row['label'], float(row['probability'])) for row in rows] == [
        (answer['file'], guess['label'], guess['probability'])
        for answer in expected for guess in answer['predictions'] if guess['probability'] >= threshold]
    assert [path.name for path in tmp_path.iterdir()] == ['a.csv'] and 0 < len(rows) < len(probabilities)
    assert answered(capsys, *words, '--threshold', 1).count('no class is that probable') == len(expected)


def test_predict_csv_of_a_name_that_is_no_unicode(folder, tmp_path, capsys):
    picture = tmp_path / os.fsdecode(b'caf\xe9.png')
    picture.write_bytes(LION.read_bytes())
    assert answered(capsys, 'predict', picture, '--model', NAME, '--csv', '--output', tmp_path / 'a.csv') == ''
    assert 'caf\\udce9.png' in (tmp_path / 'a.csv').read_text(encoding='utf-8')


def test_predict_from_a_closed_standard_input(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdin', None)
    status, _, err = run_command(capsys, 'predict', '-', '--model', NAME)
    assert status == 1 and 'standard input is not a picture' in err


def test_predict_from_standard_input(folder, monkeypatch, capsys):
    for content, status in ((LION.read_bytes(), 0), (b'<html>', 1)):
        monkeypatch.setattr(sys, 'stdin', mock.Mock(buffer=io.BytesIO(content)))
        done, out, err = run_command(capsys, 'predict', '-', '--model', NAME)
        assert done == status and (out.startswith('-\n') if status == 0 else 'standard input is not a picture' in err)


@pytest.mark.parametrize('words', [
    ['predict', 'a.png', '--model'], ['validate', '--model'], ['train', 'finetune', '--output', 'o', '--model'],
    ['train', 'finetune', '--output', 'o', '--teacher'], ['corruptions', '-o', 'a.csv'], ['info'],
    ['export', '--format', 'onnx'], ['convert', '--output', 'o', '--augment=*']])
def test_path_of_a_folder_names_a_model(words, folder):
    args = cli._parser().parse_args([*words, str(folder)])
    named = [getattr(args, name, None) for name in ('model', 'teacher', 'models', 'name', 'base')]
    assert f'local-dir:{folder}' in named or [f'local-dir:{folder}'] in named


def test_predict_is_the_same_for_every_source(folder, capsys):
    sources = [NAME, NAME_TAG, f'local-dir:{folder}', str(folder)]
    assert len({answered(capsys, 'predict', PICTURES, '--model', source, '--json') for source in sources}) == 1


def test_model_without_class_names_and_with_one_channel(tmp_path):
    timm.models.save_for_hf(timm.create_model(NAME, num_classes=4, in_chans=1), tmp_path, safe_serialization=True)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    answer, = predict(model, [LION])
    assert sorted(g['label'] for g in answer['predictions']) == ['0', '1', '2', '3']


def test_timms_models_of_imagenet_have_names():
    answer, = predict(timm.create_model('test_resnet').eval(), [LION], top=1)
    guess, = answer['predictions']
    assert guess['label'] == ImageNetInfo().index_to_label_name(guess['index'])
    assert guess['description'] == ImageNetInfo().index_to_description(guess['index'])


@pytest.mark.parametrize('words, said', [
    (['list', 'vgg'], ["'vgg'"]),
    (['predict', PICTURES, '--top', '0'], ['--top', '0']),
    (['predict', PICTURES, '--threshold', '1.1'], ['--threshold', '1.1']),
    (['predict', 'a' * 300], ['does not exist']),
    (['predict', PICTURES, '--output', 'nowhere/a.csv'], ['nowhere', 'does not exist']),
    (['predict', 'https://example.org/cat.jpg'], ['https://example.org/cat.jpg is an address', 'curl']),
    (['predict', PICTURES, '--device', 'toaster'], ['--device', 'toaster']),
    (['predict', PICTURES, '--model', 'aa_resnet19'], ['aa_resnet19', 'did you mean', 'aa_resnet18']),
    (['predict', PICTURES, '--model', f'{NAME}.nothing'], ['nothing', NAME_TAG]),
    (['predict', PICTURES, '--model', 'no/prefix'], ["hf-hub:no/prefix", "local-dir:no/prefix"]),
    (['predict', PICTURES, '--model', 'local-dir:no/where'], ['no/where']),
    (['attention', PICTURES], ['must be one picture']),
])
def test_what_cannot_be_done(words, said, folder, no_model, capsys):
    err = refused(capsys, *words)
    assert all(word in err for word in said)


BROKEN = [b'', b'not a picture', LION.read_bytes()[:-500]]


@pytest.mark.parametrize('command, content', [
    (['predict', LION], None), (['attention'], None), *((['attention'], content) for content in BROKEN)])
def test_file_that_is_no_picture_or_not_there(command, content, no_model, tmp_path, capsys):
    bad = tmp_path / 'bad.png'
    if content is not None:
        bad.write_bytes(content)
    err = refused(capsys, *command, bad)
    assert str(bad) in err and len(err.splitlines()) == 1


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
    (['--html', 'seen.png'], ['--html', 'seen.png', '.html']),
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
