"""Settings of all tests."""
import os
import re
from pathlib import Path

import pytest
import torch

# tests run in a process for each core, and processes that they start beside them: more threads would only wait
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """Neither the programs that earlier tests compiled nor the sizes that their code met count."""
    torch.compiler.reset()


def pytest_ignore_collect(collection_path, config):
    """Tests of other packages are found only where `-m clients` asks for them: to import those takes long."""
    if collection_path == Path(__file__).with_name('clients'):
        return not re.search(r'(?<!not )\bclients\b', config.option.markexpr) or None
    return None
