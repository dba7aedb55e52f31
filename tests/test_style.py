"""Ruff and mypy, as pyproject.toml sets them, find nothing."""
import subprocess
import sys

import pytest
import torch

from repository import ROOT

OLD = torch.torch_version.TorchVersion(torch.__version__) < '2.15'


@pytest.mark.parametrize('words', ['ruff check .', pytest.param('mypy', marks=[
    pytest.mark.slow, pytest.mark.skipif(OLD, reason='the annotations of earlier torch differ')])])
def test_nothing_is_found(words):
    command = [sys.executable, '-m', *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
