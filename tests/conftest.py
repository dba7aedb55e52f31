"""Settings of all tests."""
import os

import pytest
import torch

from fake_weights import save_checkpoint

# tests run in a process for each core, and processes that they start beside them: more threads would only wait
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """Folder of a small checkpoint of two augmented layers."""
    folder = tmp_path_factory.mktemp('weights') / 'aa_simplecnn'
    save_checkpoint(folder)
    return folder
