"""Two runs in one directory: the lock of the first."""
import contextlib
import errno
import importlib.util
import os
import signal
import sys

import filelock
import pytest

from aa_models import lock
from aa_models.lock import LOCK, HeldError, alone_in
from command import run_command
from training_runs import assert_goes_on, run_training, train_words


def test_directory_in_use_is_refused(tmp_path, data, capsys):
    """The second run is told who has it, before it touches anything; a lock that a killed run left holds nobody up."""
    output = tmp_path / 'out'
    unbroken = run_training(tmp_path / 'unbroken', data, '--tag', 'noise')
    with alone_in(output):
        before = {path.name: path.read_bytes() for path in output.iterdir()}
        for words in ([], ['--overwrite']):
            status, _, text = run_command(capsys, 'train', *train_words(output, data), *words)
            assert status == 2 and f'{str(output)!r} is in use by process {os.getpid()} on' in text, text
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not list(output.iterdir())
    (output / LOCK).write_text('process 1 on a machine that lost its power')
    assert_goes_on(output, data, unbroken)


def test_forked_readers_do_not_hold_the_lock(tmp_path):
    """Those of a killed run live on for a moment, and the run that goes on must not be told that they are the run."""
    with alone_in(tmp_path):
        inode = (tmp_path / LOCK).stat().st_ino
        if not (child := os.fork()):
            opened = [os.fstat(n).st_ino for n in range(3, 1000) if _is_open(n)]
            os._exit(inode in opened)
        assert os.waitpid(child, 0)[1] == 0


def test_kill_leaves_no_lock(tmp_path):
    if not (child := os.fork()):
        with alone_in(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL and (tmp_path / LOCK).exists()
    with alone_in(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_child_that_leaves_the_body_leaves_the_lock(tmp_path):
    with alone_in(tmp_path):
        if not (child := os.fork()):
            with contextlib.suppress(BaseException), alone_in(tmp_path):
                pass
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(HeldError, match=f'in use by process {os.getpid()} on'), alone_in(tmp_path):
            pass


def test_system_without_fcntl(tmp_path, monkeypatch):
    """As Windows is: nothing but filelock knows which system it is."""
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    spec = importlib.util.spec_from_file_location('aa_models.lock_again', lock.__file__)
    spec.loader.exec_module(again := importlib.util.module_from_spec(spec))
    with again.alone_in(tmp_path), pytest.raises(again.HeldError, match='in use by process'), again.alone_in(tmp_path):
        pass


@pytest.mark.parametrize('number, goes_on', [
    (errno.ENOTSUP, True), (errno.ENOSYS, True), (errno.ENOLCK, True), (errno.EROFS, False)])
def test_file_system_without_locks(number, goes_on, tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(filelock.FileLock, 'acquire', refuse)
    with contextlib.nullcontext() if goes_on else pytest.raises(ValueError, match='nothing can be made in'), \
            alone_in(tmp_path):
        pass
    assert ('file system without locks' in caplog.text) == goes_on and not list(tmp_path.iterdir())


def _is_open(number):
    with contextlib.suppress(OSError):
        return bool(os.fstat(number))
