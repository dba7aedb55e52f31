"""Training in processes of its own: several make one run, one is lost, a signal reaches a whole group."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from aa_models.cli import main as cli
from aa_models.cpu import multiplies
from aa_models.training import checkpoints, loop, stopping
from aa_models.training.recipe import load_recipe
from interruptions import after, lose_epochs, start_process
from training_runs import checkpoint_of, log_of, make_pictures, run_training, run_validation, train_words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason='torch was built without torch.distributed')
step = loop.Trainer._step


def torchrun(*words, status=0):
    """Standard output and standard error of two processes on the CPU, joined by gloo."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', *map(str, words)]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@needs_distributed
@pytest.mark.parametrize('distill', [None, 'logit', 'feature'])
def test_two_processes_make_one_run(distill, tmp_path, data, teacher):
    # an epoch is one batch of all images, so that the order in which the processes share them does not matter; and
    # the model has no batch norm, which would see half of them
    values = dict(model='test_convnext', model_kwargs={}, img_size=32, epochs=3, ema=True, ema_decay=0.5)
    values |= dict(teacher=f'local-dir:{teacher}', kd_distill_type=distill) if distill else {}
    alone = run_training(tmp_path / 'alone', data, batch_size=24, **values)
    values['batch_size'] = 12
    output = tmp_path / 'out'
    words = ['-m', 'aa_models', 'train', *train_words(output, data, **values)]
    torchrun(*words)
    whole, other = checkpoint_of(output), checkpoint_of(alone)
    for key in ('state_dict', 'state_dict_ema'):
        torch.testing.assert_close(whole[key], other[key], rtol=1e-4, atol=1e-5)
    for row, other in zip(log_of(output), log_of(alone), strict=True):
        for loss in ('train_loss', 'eval_loss'):
            assert float(row[loss]) == pytest.approx(float(other[loss]), rel=1e-4)
        assert row['eval_top1'] == other['eval_top1']
    lose_epochs(output)
    assert checkpoints.newest_whole(output) is not None
    torchrun(*words)
    for key in ('state_dict', 'state_dict_ema'):
        torch.testing.assert_close(checkpoint_of(output)[key], whole[key], rtol=0, atol=0)


@needs_distributed
def test_processes_share_the_validation(tmp_path, capsys):
    """The sampler repeats one of the 21 images to give both processes 11; it is counted once."""
    data = make_pictures(tmp_path / 'data', each=7)
    folder = run_training(tmp_path / 'out', data, epochs=1, lr=0.2) / 'aa_simplecnn.out'
    words = ['--model', f'local-dir:{folder}', '--data-dir', data, '--batch-size', 4, '--results-file']
    capsys.readouterr()
    run_validation(*words, tmp_path / 'alone.csv')
    alone = capsys.readouterr().out
    together, _ = torchrun('-m', 'aa_models', 'validate', *words, tmp_path / 'together.csv', '--workers', 0, '--card')
    assert alone.count('of 21 images') == 1 and alone.partition(' in ')[0] == together.partition(' in ')[0]
    assert len(together.splitlines()) == 1
    assert (tmp_path / 'alone.csv').read_bytes() == (tmp_path / 'together.csv').read_bytes()
    assert (folder / 'README.md').read_text().count(', 21 images |') == 1  # its throughput may be 121 images a second


def lose_rank(how, died, *words):
    """Of a run of several processes: the second ends in its second batch, which is the second epoch's.

    It is killed, or it fails while it waits for the first in a collective operation, or it fails and is told to stop
    before it has said why.
    """
    def lost(trainer, *args):
        seen.append(args)
        if not groups:
            groups.append(torch.distributed.new_group())
        if trainer.process.rank == 1 and len(seen) == 2:
            Path(died).touch()
            if how == 'killed':
                os.kill(os.getpid(), signal.SIGKILL)
            if how == 'waiting':
                groups.append(torch.distributed.all_reduce(torch.ones(1), group=groups[0], async_op=True))
            if how == 'told to stop':
                stopping.StopSignals.__exit__ = told_to_stop
            raise OSError('the pictures are gone')
        return step(trainer, *args)

    def told_to_stop(*args):
        leave(*args)
        os.kill(os.getpid(), signal.SIGTERM)
    seen, groups, leave = [], [], stopping.StopSignals.__exit__
    loop.Trainer._step = lost
    return cli.main(words)


def assert_ended(output, died, text):
    assert died.exists(), text
    assert time.time() - died.stat().st_mtime < 60
    assert checkpoint_of(output)['epoch'] == 0 and not list(output.glob('aa_simplecnn.*'))


@needs_distributed
@pytest.mark.parametrize('how, reported', [('killed', '(SIGKILL)'), ('waiting', 'exitcode  : 1 ')])
def test_torchrun_ends_when_a_rank_is_lost(tmp_path, data, how, reported):
    output, died = tmp_path / 'out', tmp_path / 'died'
    _, text = torchrun(__file__, how, died, 'train', *train_words(output, data), status=1)
    assert_ended(output, died, text)
    assert reported in text and (how == 'killed' or 'OSError: the pictures are gone' in text), text
    # the other may learn of it by itself, or be told to stop before
    assert 'peer' in text or 'stopped by SIGTERM: 1 of 2 epochs are saved' in text, text


def command_process(log, environment, command, *words):
    """In a process of its own: run a command whose standard error goes to a file."""
    with open(log, 'w') as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.exit(command(*map(str, words)))


@needs_distributed
@pytest.mark.parametrize('how', ['killed', 'told to stop'])
def test_process_ends_without_the_other(tmp_path, data, how):
    """No launcher ends it."""
    output, died = tmp_path / 'out', tmp_path / 'died'
    words = ['train', *train_words(output, data)]
    port = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False).port  # a free one
    world = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    places = [dict(world, RANK=rank, LOCAL_RANK=rank) for rank in '01']
    processes = [
        start_process(command_process, tmp_path / place['RANK'], place, lose_rank, how, died, *words)
        for place in places]
    try:
        for process in processes:
            process.join(200)
        text = (tmp_path / '0').read_text()
        assert_ended(output, died, text)
        assert processes[0].exitcode == 1 and 'peer' in text, text
        assert processes[1].exitcode == (-signal.SIGKILL if how == 'killed' else 1)
        assert how == 'killed' or 'the pictures are gone' in (tmp_path / '1').read_text()
    finally:
        for process in processes:
            process.kill()


def signal_group(number, *words):
    """In the second epoch the signal comes to this process and its children."""
    def signalled(trainer, *args):
        os.killpg(0, int(number))
        time.sleep(60)
    loop.Trainer._step = after(4, step, signalled)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what runs behind it
    return cli.main(words)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_to_a_whole_group(tmp_path, data, number):
    """As a terminal and a batch system send it: the loader's workers get it too."""
    words = ['train', *train_words(tmp_path / 'out', data, workers=1)]
    process = start_process(command_process, tmp_path / 'log', {}, signal_group, int(number), *words)
    try:
        process.join(300)
        text = (tmp_path / 'log').read_text()
        assert process.exitcode == 128 + number and 'Traceback' not in text, text
        assert f'stopped by {number.name}: 1 of 2 epochs are saved' in text
    finally:
        process.kill()


if __name__ == '__main__':
    sys.exit(lose_rank(*sys.argv[1:]))


@needs_distributed
def test_processes_agree_on_precision(tmp_path, data):
    """The first one decides."""
    output = tmp_path / 'out'
    torchrun('-m', 'aa_models', 'train', *train_words(output, data, epochs=1, amp='auto'))
    assert load_recipe(output / 'recipe.yaml').amp is multiplies(torch.bfloat16)
