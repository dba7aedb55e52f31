"""The command line: its answers, its errors and their exit statuses."""
import io
import logging
import re
import subprocess
import sys
from subprocess import PIPE, Popen
from unittest import mock

import pytest

from aa_models import errors
from aa_models.analysis.zoo_table import measure_zoo
from aa_models.cli import main as cli
from aa_models.cli.options import key_value
from aa_models.zoo import own_models, read_zoo
from command import answered, refused, run_command
from fake_weights import NAME, NAME_TAG
from repository import BROKEN_PICTURES, LION, PICTURES


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


@pytest.mark.parametrize('work, words', [
    ('training.validation.validation_recipe', ['validate', '--model', NAME]),
    ('training.validation.validation_recipe', ['corruptions', NAME, '--output', 'table.csv']),
    ('training.run.train', ['train', 'finetune', '--output', 'out']),
    ('training.sweep.run_sweep', ['sweep', 'a.yaml', '--output', 'out', '--results-file', 'table.csv']),
])
def test_commands_that_set_up_a_log_escape_its_lines(work, words, tmp_path, capsys, monkeypatch):
    def warn(*args, **kwargs):
        logging.getLogger('aa_models').warning('empty class %s', '\x1b[31m')
        raise errors.InputError('enough')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f'aa_models.{work}', warn)
    monkeypatch.setattr(logging.root, 'level', logging.root.level)
    monkeypatch.setattr(logging.root, 'handlers', [])
    assert r'empty class \x1b[31m' in refused(capsys, *words)


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


@pytest.mark.parametrize('filter, names', [
    ('wrn', '.*wrn.*'), ('aa_resnet1*', 'aa_resnet1.*'), ('aa_resnet18', '.*aa_resnet18.*'),
    ('*.cifar100', r'.*\.cifar100'), ('aa_simplecnn', '.*aa_simplecnn.*'), ('aa_resnet[35]?', r'aa_resnet[35].(\..*)?'),
])
def test_list_filter(filter, names, capsys):
    shown = [line.split()[0] for line in answered(capsys, 'list', filter).splitlines()[1:]]
    assert shown == [row.name for row in read_zoo() if re.fullmatch(names, row.name)] != []


def test_zoo_file_is_true():
    assert read_zoo() == measure_zoo(), 'write aa_models/zoo.csv again: python -m aa_models.analysis.zoo_table'


@pytest.mark.parametrize('words', [
    ['predict', 'a.png', '--model'], ['validate', '--model'], ['train', 'finetune', '--output', 'o', '--model'],
    ['train', 'finetune', '--output', 'o', '--teacher'], ['corruptions', '-o', 'a.csv'], ['info'],
    ['export', '--format', 'onnx'], ['convert', '--output', 'o', '--augment=*']])
def test_path_of_a_folder_names_a_model(words, folder):
    args = cli._parser().parse_args([*words, str(folder)])
    named = [getattr(args, name, None) for name in ('model', 'teacher', 'models', 'name', 'base')]
    assert f'local-dir:{folder}' in named or [f'local-dir:{folder}'] in named


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


@pytest.mark.parametrize('command, content', [
    (['predict', LION], None), (['attention'], None), *((['attention'], content) for content in BROKEN_PICTURES)])
def test_file_that_is_no_picture_or_not_there(command, content, no_model, tmp_path, capsys):
    bad = tmp_path / 'bad.png'
    if content is not None:
        bad.write_bytes(content)
    err = refused(capsys, *command, bad)
    assert str(bad) in err and len(err.splitlines()) == 1
