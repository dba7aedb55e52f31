"""Ruff and mypy, as pyproject.toml sets them, find nothing."""
import subprocess
import sys

import pytest
import torch

from repository import ROOT


def run(*words):
    done = subprocess.run([sys.executable, '-m', *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f'{" ".join(words)}\n{done.stdout}{done.stderr}'


def test_ruff():
    run('ruff', 'check', '.')


@pytest.mark.slow
@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < '2.15', reason='the annotations of earlier torch differ')
def test_mypy():
    run('mypy')
