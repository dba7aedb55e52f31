"""Settings of all tests."""
import os

import pytest
import torch

# tests run in a process for each core, and processes that they start beside them: more threads would only wait
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
