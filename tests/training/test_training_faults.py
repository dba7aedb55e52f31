"""What befalls a training run: a full disk, signals, numbers that are none, files that are no checkpoints."""
import argparse
import errno
import logging
import os
import pickle
import re
import resource
import shutil
import signal
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import timm.utils
import torch
from safetensors import SafetensorError

from aa_models.errors import WorkError
from aa_models.release import folder as export
from aa_models.release import saving
from aa_models.training import checkpoints, loop
from aa_models.training import run as train
from command import run_command
from interruptions import after, lose_epochs, save_half, torch_save
from training_runs import assert_goes_on, assert_same_run, checkpoint_of, log_of, run_training, train_words

step = loop.Trainer._step


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory, data):
    return run_training(tmp_path_factory.mktemp('unbroken') / 'out', data, '--tag', 'noise')


def train_command(capsys, output, data, **values):
    """Exit status and standard error of `aa-models train`."""
    status, _, text = run_command(capsys, 'train', *train_words(output, data, **values), '--tag', 'noise')
    assert 'Traceback' not in text
    return status, text


# a disk without room

def no_room(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_line(epoch, *args, **kwargs):
    """The log's line is cut, in the first epoch within the header."""
    log = args[2]
    before = log.read_bytes() if log.exists() else b''
    timm.utils.update_summary(epoch, *args, **kwargs)
    added = log.read_bytes()[len(before):]
    log.write_bytes(before + added[:20 if epoch == 0 else 1])
    no_room()


def half_weights(model, folder, *args, **kwargs):
    (Path(folder) / 'model.safetensors').write_bytes(b'half')
    raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')


@pytest.mark.parametrize('owner, name, failing, calls, epochs', [
    (torch, 'save', save_half(no_room), 0, 0),
    (torch, 'save', save_half(no_room), 1, 1),
    (train, 'update_summary', half_line, 0, 0),
    (train, 'update_summary', half_line, 1, 1),
    (train.checkpoints, 'write_facts', no_room, 0, 0),
    (saving, 'save_for_hf', half_weights, 0, 2),
])
def test_disk_full(tmp_path, data, unbroken, monkeypatch, capsys, owner, name, failing, calls, epochs):
    output = tmp_path / 'out'
    monkeypatch.setattr(owner, name, after(calls, getattr(owner, name), failing))
    status, text = train_command(capsys, output, data)
    assert status == 1 and f'cannot write to {str(output)!r}' in text and 'No space left on device' in text
    assert 'the same command goes on' in text
    assert [checkpoint_of(output)['epoch'] + 1 for _ in output.glob('last.pth.tar')] == [epochs] * (epochs > 0)
    assert not (output / checkpoints.PART).exists() and not list(output.glob('*noise*'))
    monkeypatch.undo()
    assert_goes_on(output, data, unbroken)


def test_torchs_own_writer_has_no_room(tmp_path, data, unbroken, monkeypatch, capsys):
    """A limit to the size of files ends the second checkpoint in the middle, in C++, which raises no OSError."""
    output, limits = tmp_path / 'out', resource.getrlimit(resource.RLIMIT_FSIZE)
    half = (unbroken / 'last.pth.tar').stat().st_size // 2

    def limited_save(content, path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, limits[1]))
        torch_save(content, path)
    monkeypatch.setattr(torch, 'save', after(1, torch_save, limited_save))
    try:
        for _ in range(2):  # there is still no room
            status, text = train_command(capsys, output, data)
            assert status == 1 and f'cannot write to {str(output)!r}' in text and 'MiB are free' in text
            assert checkpoint_of(output)['epoch'] == 0 and not (output / checkpoints.PART).exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert_goes_on(output, data, unbroken)


def test_error_of_another_kind_is_not_called_a_full_disk(tmp_path, data, monkeypatch):
    monkeypatch.setattr(torch, 'save', mock.Mock(side_effect=RuntimeError('a fault of the program')))
    with pytest.raises(RuntimeError, match='a fault of the program') as raised:
        run_training(tmp_path / 'out', data)
    assert not isinstance(raised.value, WorkError)


# power

def test_power_lost_at_any_moment(tmp_path, data, monkeypatch):
    """Between any two operations on names there is a checkpoint whose content is on the disk."""
    output, flushed, moments = tmp_path / 'out', set(), []

    def recorded(name):
        function = getattr(os, name)

        def record(*args, **kwargs):
            moments.append((name, args, sum(path.stat().st_ino in flushed for path in output.glob('*.pth.tar'))))
            if name == 'fsync':
                flushed.add(os.fstat(args[0]).st_ino)
            return function(*args, **kwargs)
        monkeypatch.setattr(os, name, record)
    for name in ('fsync', 'replace', 'rename', 'link', 'unlink'):
        recorded(name)
    run_training(output, data, '--tag', 'noise', epochs=3, checkpoint_hist=1)
    first = next(i for i, (name, args, _) in enumerate(moments) if name == 'replace' and 'last.pth' in str(args[1]))
    assert all(there for _, _, there in moments[first:]) and len(moments[first:]) > 10
    assert all(path.stat().st_ino in flushed for path in (output / 'aa_simplecnn.noise').iterdir())
    assert {(output / name).stat().st_ino for name in ('log.csv', 'recipe.yaml', 'run.json')} <= flushed


# signals

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('owner, name, calls, epochs', [
    (loop.Trainer, '_step', 2, 0),
    (loop.Trainer, '_step', 5, 1),
    (loop.Trainer, 'validate', 2, 1),
    (torch, 'save', 2, 2),  # what is being saved is completed
    (timm.utils.CheckpointSaver, '_replace', 1, 1),
    (export, 'make_card', 1, 2),
])
def test_signal_saves_and_leaves(
        tmp_path, data, unbroken, monkeypatch, capsys, caplog, number, owner, name, calls, epochs):
    output, function, seen = tmp_path / 'out', getattr(owner, name), []

    def call(*args, **kwargs):
        seen.append(args)
        if len(seen) == calls:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)
    monkeypatch.setattr(owner, name, call)
    before = signal.signal(number, lambda *_: pytest.fail('the run did not take the signal'))
    try:
        with caplog.at_level(logging.WARNING):
            status, _ = train_command(capsys, output, data)
        assert signal.getsignal(number).__name__ == '<lambda>'
    finally:
        signal.signal(number, before)
    assert status == 128 + number
    rest = f'epoch {epochs + 1}' if epochs < 2 else 'the export'
    said = f'stopped by {number.name}: {epochs} of 2 epochs are saved in {str(output)!r}, the same command goes on with'
    assert f'{said} {rest}' in caplog.text
    assert [checkpoint_of(output)['epoch'] + 1 for _ in output.glob('last.pth.tar')] == [epochs] * (epochs > 0)
    monkeypatch.undo()
    assert_goes_on(output, data, unbroken)


def test_ignored_signal_stays_ignored(tmp_path, data, unbroken, monkeypatch):
    monkeypatch.setattr(loop.Trainer, '_step', lambda *args: (os.kill(os.getpid(), signal.SIGINT), step(*args))[1])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's & do
    try:
        assert_same_run(run_training(tmp_path / 'out', data), unbroken)
    finally:
        signal.signal(signal.SIGINT, before)


# numbers that are none

def test_infinite_loss_stops_and_keeps_the_checkpoint(tmp_path, data, capsys):
    status, text = train_command(  # the first epoch learns nothing, the second far too fast
        capsys, tmp_path / 'out', data, epochs=3, lr=1e30, warmup_epochs=1, warmup_lr=0, sched_on_updates=False)
    assert status == 1 and re.search(
        'aa-models train: error: the loss is (nan|inf) at epoch 2, batch [23]: .*checkpoint is kept', text), text
    assert checkpoint_of(tmp_path / 'out')['epoch'] == 0 and len(log_of(tmp_path / 'out')) == 1


def test_infinite_weight_is_not_saved(tmp_path, data, unbroken, monkeypatch, capsys):
    def last_update_fails(trainer, *args):
        loss = step(trainer, *args)
        next(trainer.task.get_trainable_module().parameters()).data[0] = torch.inf
        return loss
    output = run_training(tmp_path / 'out', data, '--tag', 'noise', epochs=2)
    lose_epochs(output)
    monkeypatch.setattr(loop.Trainer, '_step', after(2, step, last_update_fails))  # no loss of this epoch sees it
    status, text = train_command(capsys, output, data)
    assert status == 1 and 'is infinite or not a number after epoch 2: training stops' in text
    assert checkpoint_of(output)['epoch'] == 0
    monkeypatch.undo()
    assert_goes_on(output, data, unbroken)


# files that are no checkpoint of this run, or no longer

class Code:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ('executed',)


def zipped(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps(Code()))


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


STRANGE = {
    'empty': lambda path: path.write_bytes(b''),
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    'one bit': damaged,
    'text': lambda path: path.write_text('<html>'),
    'zip': lambda path: zipfile.ZipFile(path, 'w').close(),
    'code in a pickle': lambda path: path.write_bytes(pickle.dumps(Code())),
    'code in a zip': zipped,
    'code in a checkpoint': lambda path: torch.save(dict(checkpoint_of(path.parent), metric=Code()), path),
    'plain weights': lambda path: torch.save(checkpoint_of(path.parent)['state_dict'], path),
    'a number': lambda path: torch.save(3, path),
    'no optimizer': lambda path: torch.save(
        {k: v for k, v in checkpoint_of(path.parent).items() if k != 'optimizer'}, path),
}


@pytest.fixture
def finished(tmp_path, unbroken):
    """A copy of the unbroken run with its last epoch in `last.pth.tar` alone."""
    output = shutil.copytree(unbroken, tmp_path / 'out')
    lose_epochs(output)
    shutil.copy(unbroken / 'last.pth.tar', output)
    return output


@pytest.mark.parametrize('kind', STRANGE)
def test_strange_checkpoint_is_left_aside(finished, monkeypatch, tmp_path, kind):
    monkeypatch.chdir(tmp_path)
    STRANGE[kind](finished / 'last.pth.tar')
    assert checkpoints.epoch_of(checkpoints.newest_whole(finished)) == 0
    assert not Path('executed').exists()


def test_run_goes_on_from_before_strange_checkpoints(finished, monkeypatch, tmp_path, data, unbroken):
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished / 'last.pth.tar', finished / 'checkpoint-1.pth.tar')
    for kind, name in (('code in a checkpoint', 'last'), ('one bit', 'checkpoint-1'), ('empty', 'tmp')):
        STRANGE[kind](finished / f'{name}.pth.tar')
    assert_goes_on(finished, data, unbroken)
    assert not Path('executed').exists()


def test_checkpoint_of_another_recipe_is_refused(finished, data, capsys):
    state = checkpoint_of(finished)
    state['args'] = argparse.Namespace(**{**vars(state['args']), 'model': 'simplecnn', 'seed': 4})
    torch.save(state, finished / 'last.pth.tar')
    status, text = train_command(capsys, finished, data)
    assert status == 2 and 'last.pth.tar' in text and "model: 'simplecnn' there, 'aa_simplecnn' now; seed: 4" in text
    assert checkpoint_of(finished)['args'].seed == 4


@pytest.mark.parametrize('name', ['last', 'tmp'])
def test_directory_instead_of_a_checkpoint(finished, data, capsys, name):
    path = finished / f'{name}.pth.tar'
    path.unlink(missing_ok=True)
    path.mkdir()
    status, text = train_command(capsys, finished, data)
    assert status == 2 and f'{str(path)!r} has the name of a checkpoint and is no file' in text
