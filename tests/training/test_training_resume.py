"""A run that is killed and goes on ends exactly as one that was left alone."""
import csv
import itertools
import os
import random
import signal
from pathlib import Path

import pytest
import timm.utils.checkpoint_saver
import torch

from aa_models.release import saving
from aa_models.training import checkpoints, loop, run
from interruptions import after, lose_epochs, save_half, start_process
from training_runs import assert_goes_on, assert_same_run, log_of, make_pictures, run_training

# all that draws random numbers is on, in a loader's worker too; some epochs are ranked by their accuracy, some are not
VALUES = dict(
    epochs=5, val_interval=2, ema=True, ema_decay=0.9, mixup=0.2, hflip=0.5, color_jitter=0.4, re_prob=0.3, workers=1,
    scale=[0.5, 1.0], drop=0.1, amp=True, amp_dtype='float16', opt='adamw', lr=0.01, holdout=8)


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def die_naming_last(source, target):
    """Die where timm's saver has removed `last` and the new one has not taken its name yet."""
    if Path(target).name == 'last.pth.tar' and not Path(target).exists():
        die()
    replace(source, target)


replace = os.replace

# where each of the runs one after another dies: (module or class, name, what stands there instead)
DEATHS = {
    'in the first epoch': lambda: (loop.Trainer, '_step', after(2, loop.Trainer._step, die)),
    'in an epoch': lambda: (loop.Trainer, '_step', after(4, loop.Trainer._step, die)),
    'in validation': lambda: (loop.Trainer, 'validate', die),
    'between log and checkpoint': lambda: (timm.utils.CheckpointSaver, 'save_checkpoint', after(1, SAVE, die)),
    'in writing': lambda: (torch, 'save', after(1, torch.save, save_half(die))),
    'in writing again': lambda: (torch, 'save', save_half(die)),
    'in naming': lambda: (os, 'replace', die_naming_last),
    'in trimming the log': lambda: (checkpoints, 'trim_log', die),
    'in linking': lambda: (os, 'link', after(1, os.link, die)),
    'in exporting': lambda: (saving, 'save_for_hf', die),
}
SAVE = timm.utils.CheckpointSaver.save_checkpoint


def doomed_run(output, data, death):
    """In a process of its own: train until death."""
    setattr(*DEATHS[death]())
    run_training(output, data, '--tag', 'noise', **VALUES)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_any_moment(tmp_path):
    data = make_pictures(tmp_path / 'data', each=12)
    unbroken = run_training(tmp_path / 'unbroken', data, '--tag', 'noise', **VALUES)
    output, seen = tmp_path / 'killed', []
    for death in DEATHS:
        process = start_process(doomed_run, output, data, death)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, death
        seen.append(len(log_of(output)) if (output / 'log.csv').exists() else 0)
    assert not list(output.glob('aa_simplecnn.*'))
    assert seen == sorted(seen) and seen[-1] == 5, seen  # each went on with what those before it had
    assert_goes_on(output, data, unbroken, **VALUES)


# what the clock of a random death starts with; the saver is called in resuming too
MARKS = {'training': (loop.Trainer, 'start'), 'saving': (timm.utils.CheckpointSaver, 'save_checkpoint')}
QUICK = {**VALUES, 'epochs': 8, 'workers': 0}


def timed_run(output, data, mark, delay):
    """In a process of its own: train, and die some seconds after the first mark, if all is not done before."""
    owner, name = MARKS[mark]
    function = getattr(owner, name)

    def marked(*args, **kwargs):
        setattr(owner, name, function)
        signal.setitimer(signal.ITIMER_REAL, delay)  # the signal that then comes kills, as SIGKILL does
        return function(*args, **kwargs)
    setattr(owner, name, marked)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    run_training(output, data, **QUICK)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments(tmp_path):
    data = make_pictures(tmp_path / 'data', each=6)
    unbroken = run_training(tmp_path / 'unbroken', data, **QUICK)
    with open(unbroken / 'log.csv', newline='') as file:
        epoch = min(float(row['train_seconds']) for row in csv.DictReader(file))
    moments, kills, chains = random.Random(0), 0, 1
    while kills < 12:
        mark = ('training', 'saving')[kills % 2]
        delay = moments.uniform(0, 2 * epoch if mark == 'training' else 0.02)
        process = start_process(timed_run, tmp_path / f'killed{chains}', data, mark, delay)
        process.join(300)
        assert process.exitcode in (0, -signal.SIGALRM)
        kills += process.exitcode != 0
        chains += process.exitcode == 0  # it came to its end before: the next ones start a chain of their own
    run_training(tmp_path / f'killed{chains}', data, **QUICK)
    for number in range(chains):
        assert_same_run(tmp_path / f'killed{number + 1}', unbroken)


def test_finished_run_changes_nothing(tmp_path, data):
    """But that the log loses rows which came after the checkpoint."""
    output = run_training(tmp_path / 'out', data, epochs=1)
    card, log = output / 'aa_simplecnn.out' / 'README.md', output / 'log.csv'
    card.write_text(card.read_text() + 'Mine.\n')
    rows = log.read_bytes()
    for row in (b'', rows.splitlines(keepends=True)[1].replace(b'0,', b'1,', 1)):
        log.write_bytes(rows + row)
        run_training(output, data, epochs=1)
        assert card.read_text().endswith('Mine.\n') and log.read_bytes() == rows


def shortened(loader):
    """Let a loader end one batch earlier than its length says, as iterable datasets do."""
    class ShortLoader(type(loader)):
        def __iter__(self):
            return itertools.islice(super().__iter__(), len(self) - 1)
    loader.__class__ = ShortLoader
    return loader


def test_gradients_do_not_outlive_their_epoch(tmp_path, data, monkeypatch):
    """The last batch waits for another one to make an update of two, and it does not come."""
    make = run.make_train_loader
    monkeypatch.setattr(run, 'make_train_loader', lambda *args: shortened(make(*args)))
    values = dict(batch_size=6, grad_accum_steps=2)
    unbroken = run_training(tmp_path / 'unbroken', data, **values)
    output = run_training(tmp_path / 'out', data, **values)
    lose_epochs(output)
    assert_same_run(run_training(output, data, **values), unbroken)
