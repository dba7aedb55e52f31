"""A run that is killed and goes on ends exactly as one that was left alone; several processes make one run."""
import csv
import io
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import timm.utils.checkpoint_saver
import torch

from aa_models.release import folder as export
from aa_models.training import checkpoints, loop, run
from training_runs import (
    assert_same_run,
    checkpoint_of,
    log_of,
    make_pictures,
    run_training,
    run_validation,
    torchrun,
    write_recipe,
)

# all that draws random numbers is on, in a loader's worker too; some epochs are ranked by their accuracy, some are not
VALUES = dict(
    epochs=5, val_interval=2, ema=True, ema_decay=0.9, mixup=0.2, hflip=0.5, color_jitter=0.4, re_prob=0.3, workers=1,
    scale=[0.5, 1.0], drop=0.1, amp=True, amp_dtype='float16', opt='adamw', lr=0.01, holdout=8)


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def after(count, function, last=die):
    """`function`, but the call after `count` others is `last` instead."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(args)
        return (last if len(calls) > count else function)(*args, **kwargs)
    return wrapped


def half_save(content, path):
    """Write the first half of a checkpoint and die."""
    buffer = io.BytesIO()
    torch_save(content, buffer)
    Path(path).write_bytes(buffer.getvalue()[:len(buffer.getvalue()) // 2])
    die()


def die_naming_last(source, target):
    """Die where timm's saver has removed `last` and the new one has not taken its name yet."""
    if Path(target).name == 'last.pth.tar' and not Path(target).exists():
        die()
    replace(source, target)


torch_save, replace = torch.save, os.replace

# where each of the runs one after another dies: (module or class, name, what stands there instead)
DEATHS = {
    'in the first epoch': lambda: (loop.Trainer, '_step', after(2, loop.Trainer._step)),
    'in an epoch': lambda: (loop.Trainer, '_step', after(4, loop.Trainer._step)),
    'in validation': lambda: (loop.Trainer, 'validate', die),
    'between log and checkpoint': lambda: (timm.utils.CheckpointSaver, 'save_checkpoint', after(1, SAVE)),
    'in writing': lambda: (torch, 'save', after(1, torch_save, half_save)),
    'in writing again': lambda: (torch, 'save', half_save),
    'in naming': lambda: (os, 'replace', die_naming_last),
    'in trimming the log': lambda: (checkpoints, 'trim_log', die),
    'in linking': lambda: (os, 'link', after(1, os.link)),
    'in exporting': lambda: (export, 'save_for_hf', die),
}
SAVE = timm.utils.CheckpointSaver.save_checkpoint


def doomed_run(output, data, death):
    """In a process of its own: train until death."""
    multiprocessing.set_start_method('fork', force=True)  # of the loader's workers: children that see their parent die
    setattr(*DEATHS[death]())
    run_training(output, data, '--tag', 'noise', **VALUES)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_any_moment(tmp_path, monkeypatch):
    data = make_pictures(tmp_path / 'data', each=12)
    unbroken = run_training(tmp_path / 'unbroken', data, '--tag', 'noise', **VALUES)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
    context = multiprocessing.get_context('forkserver')  # a process that has imported torch once and forks
    context.set_forkserver_preload(['test_training_resume'])
    output, seen = tmp_path / 'killed', []
    for death in DEATHS:
        process = context.Process(target=doomed_run, args=(output, data, death))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, death
        seen.append(len(log_of(output)) if (output / 'log.csv').exists() else 0)
    assert not list(output.glob('aa_simplecnn.*'))
    run_training(output, data, '--tag', 'noise', **VALUES)
    assert_same_run(output, unbroken)
    assert seen == sorted(seen) and seen[-1] == 5, seen  # each went on with what those before it had
    for name in ('model.safetensors', 'config.json'):
        assert (output / 'aa_simplecnn.noise' / name).read_bytes() == (
            unbroken / 'aa_simplecnn.noise' / name).read_bytes()
    files = [{p.name for p in run.glob('*') if p.name != 'tmp.pth.tar'} for run in (output, unbroken)]
    assert files[0] == files[1]
    for name in ('checkpoint-1', 'checkpoint-3', 'checkpoint-4', 'model_best'):
        if (unbroken / f'{name}.pth.tar').exists():
            assert checkpoint_of(output, name)['epoch'] == checkpoint_of(unbroken, name)['epoch']


# what the clock of a random death starts with; the saver is called in resuming too
MARKS = {'training': (loop.Trainer, 'start'), 'saving': (timm.utils.CheckpointSaver, 'save_checkpoint')}
QUICK = {**VALUES, 'epochs': 8, 'workers': 0}


def marked_run(output, data, mark, connection):
    """In a process of its own: train, and tell when the mark is reached."""
    owner, name = MARKS[mark]
    function = getattr(owner, name)

    def marked(*args, **kwargs):
        connection.send(mark)
        return function(*args, **kwargs)
    setattr(owner, name, marked)
    run_training(output, data, **QUICK)


def run_until(context, output, data, mark, delay):
    """Kill a run some seconds after its first mark; its exit code, 0 if it was faster."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=marked_run, args=(output, data, mark, sender))
    process.start()
    sender.close()
    assert receiver.poll(300)
    try:
        receiver.recv()
        time.sleep(delay)
        process.kill()
    except EOFError:
        pass  # all epochs were there already, which is how the last kill may leave them
    process.join(300)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments(tmp_path, monkeypatch):
    data = make_pictures(tmp_path / 'data', each=6)
    unbroken = run_training(tmp_path / 'unbroken', data, **QUICK)
    with open(unbroken / 'log.csv', newline='') as file:
        epoch = min(float(row['train_seconds']) for row in csv.DictReader(file))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['test_training_resume'])
    moments, kills, chains = random.Random(0), 0, 1
    while kills < 12:
        mark = ('training', 'saving')[kills % 2]
        delay = moments.uniform(0, 2 * epoch if mark == 'training' else 0.02)
        status = run_until(context, tmp_path / f'killed{chains}', data, mark, delay)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        chains += status == 0  # it came to its end before: the next ones start a chain of their own
    run_training(tmp_path / f'killed{chains}', data, **QUICK)
    for number in range(chains):
        assert_same_run(tmp_path / f'killed{number + 1}', unbroken)


def test_damaged_checkpoint_is_left_aside(tmp_path):
    data = make_pictures(tmp_path / 'data')
    unbroken = run_training(tmp_path / 'unbroken', data, epochs=2)
    output = run_training(tmp_path / 'out', data, epochs=2)
    damaged = bytearray((output / 'last.pth.tar').read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit, in a file that is one with checkpoint-1 and perhaps the best
    (output / 'last.pth.tar').write_bytes(damaged)
    assert checkpoints.newest_whole(output) == output / 'checkpoint-0.pth.tar'
    run_training(output, data, epochs=2)
    assert_same_run(output, unbroken)


def test_finished_run_changes_nothing(tmp_path):
    data = make_pictures(tmp_path / 'data')
    output = run_training(tmp_path / 'out', data, epochs=1)
    card = output / 'aa_simplecnn.out' / 'README.md'
    card.write_text(card.read_text() + 'Mine.\n')
    log = (output / 'log.csv').read_bytes()
    run_training(output, data, epochs=1)
    assert card.read_text().endswith('Mine.\n') and (output / 'log.csv').read_bytes() == log


def test_log_is_that_of_the_checkpoint(tmp_path):
    data = make_pictures(tmp_path / 'data')
    output = run_training(tmp_path / 'out', data, epochs=1)
    rows = (output / 'log.csv').read_text()
    (output / 'log.csv').write_text(rows + rows.splitlines()[1].replace('0,', '1,', 1) + '\n')
    run_training(output, data, epochs=1)
    assert (output / 'log.csv').read_text().splitlines() == rows.splitlines()


needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason='torch was built without torch.distributed')


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_distributed
def test_two_processes_make_one_run(tmp_path):
    data = make_pictures(tmp_path / 'data')
    # an epoch is one batch of all images, so that the order in which the processes share them does not matter; and
    # the model has no batch norm, which would see half of them
    values = dict(model='test_convnext', model_kwargs={}, img_size=32, epochs=3, ema=True, ema_decay=0.5)
    alone = run_training(tmp_path / 'alone', data, batch_size=24, **values)
    values['batch_size'] = 12
    output = tmp_path / 'out'
    words = ['train', write_recipe(output, **values), '--data-dir', data, '--output', output]
    torchrun(*words)
    whole, other = checkpoint_of(output), checkpoint_of(alone)
    for key in ('state_dict', 'state_dict_ema'):
        torch.testing.assert_close(whole[key], other[key], rtol=1e-4, atol=1e-5)
    for row, other in zip(log_of(output), log_of(alone), strict=True):
        assert float(row['train_loss']) == pytest.approx(float(other['train_loss']), rel=1e-4)
        assert float(row['eval_loss']) == pytest.approx(float(other['eval_loss']), rel=1e-4)
        assert row['eval_top1'] == other['eval_top1']
    for name in ('last', 'checkpoint-1', 'checkpoint-2', 'model_best'):  # as if it had been killed in the last epochs
        if (output / f'{name}.pth.tar').exists() and checkpoint_of(output, name)['epoch'] > 0:
            (output / f'{name}.pth.tar').unlink()
    assert checkpoints.newest_whole(output) is not None
    torchrun(*words)
    for key in ('state_dict', 'state_dict_ema'):
        torch.testing.assert_close(checkpoint_of(output)[key], whole[key], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_distributed
def test_processes_share_the_validation(tmp_path, capsys):
    """The sampler repeats one of the 21 images to give both processes 11; it is counted once."""
    data = make_pictures(tmp_path / 'data', each=7)
    folder = run_training(tmp_path / 'out', data, epochs=1, lr=0.2) / 'aa_simplecnn.out'
    words = ['--model', f'local-dir:{folder}', '--data-dir', data, '--batch-size', 4, '--results-file']
    capsys.readouterr()
    run_validation(*words, tmp_path / 'alone.csv')
    alone = capsys.readouterr().out
    together = torchrun('validate', *words, tmp_path / 'together.csv', '--workers', 0, '--card')
    assert alone.count('of 21 images') == 1 and alone.partition(' in ')[0] == together.partition(' in ')[0]
    assert len(together.splitlines()) == 1
    assert (tmp_path / 'alone.csv').read_bytes() == (tmp_path / 'together.csv').read_bytes()
    assert (folder / 'README.md').read_text().count('21 images') == 1


class ShortLoader:
    """A loader that ends one batch earlier than its length says, as iterable datasets do."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return itertools.islice(self.loader, len(self.loader) - 1)


def test_gradients_do_not_outlive_their_epoch(tmp_path, monkeypatch):
    """The last batch waits for another one to make an update of two, and it does not come."""
    make = run.make_train_loader
    monkeypatch.setattr(run, 'make_train_loader', lambda *args: ShortLoader(make(*args)))
    data, values = make_pictures(tmp_path / 'data'), dict(batch_size=6, grad_accum_steps=2)
    unbroken = run_training(tmp_path / 'unbroken', data, **values)
    output = run_training(tmp_path / 'out', data, **values)
    for name in ('last', 'checkpoint-1', 'model_best'):
        if (output / f'{name}.pth.tar').exists() and checkpoint_of(output, name)['epoch'] == 1:
            (output / f'{name}.pth.tar').unlink()
    assert_same_run(run_training(output, data, **values), unbroken)
