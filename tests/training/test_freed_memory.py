"""Memory of freed tensors is kept: the next ones cause no page faults."""
import os
import platform
import subprocess
import sys

import pytest

from aa_models.training import freed_memory, run
from training_runs import run_training

FAULTS = '''
import resource, statistics, sys
import torch
from aa_models.training.freed_memory import keep_freed_memory

told = keep_freed_memory() if sys.argv[1] == 'keep' else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(9):
    before = faults()
    torch.ones(2 ** 24)  # 64 MiB
    counts.append(faults() - before)
print(told, statistics.median(counts))  # a system short of memory takes pages back now and then
'''


def faults(word):
    """What `keep_freed_memory` says, and the page faults of a tensor of 64 MiB."""
    environment = {name: value for name, value in os.environ.items() if name not in freed_memory.GLIBC_SETTINGS}
    told, count = subprocess.check_output([sys.executable, '-c', FAULTS, word], env=environment, text=True).split()
    return told, float(count)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another allocator')
def test_kept_memory_causes_no_page_faults():
    _, given_back = faults('give back')
    told, kept = faults('keep')
    assert told == 'True' and kept < given_back / 10


@pytest.mark.parametrize('name', freed_memory.GLIBC_SETTINGS)
def test_other_orders_count(monkeypatch, name):
    monkeypatch.setenv(name, '')
    assert not freed_memory.keep_freed_memory()


def test_no_allocator_of_that_kind(monkeypatch):
    for name in freed_memory.GLIBC_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory.ctypes, 'CDLL', lambda name: object())
    assert not freed_memory.keep_freed_memory()


def test_training_on_a_cpu_keeps_memory(tmp_path, data, monkeypatch):
    calls = []
    monkeypatch.setattr(run, 'keep_freed_memory', lambda: calls.append(True))
    run_training(tmp_path / 'out', data, epochs=1)
    assert calls == [True]
