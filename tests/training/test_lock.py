"""Two runs in one directory: the lock of the first."""
import contextlib
import os

from aa_models.training.lock import LOCK, alone_in
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


def _is_open(number):
    with contextlib.suppress(OSError):
        return bool(os.fstat(number))
