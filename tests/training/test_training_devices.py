"""Where training and validation run, and what is forced on the process there."""
import os

import pytest
import torch

from aa_models.device import Process, find_device, machine_name, start_device
from aa_models.errors import InputError
from aa_models.training import run
from training_runs import run_training

CPU = torch.device('cpu')


@pytest.fixture
def accelerator(monkeypatch):
    """Pretend that the machine has accelerators."""
    def have(kind, count):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: kind == 'cuda')
        monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda check_available: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, 'device_count', lambda: count)
    return have


def test_cuda_where_there_is_one(accelerator):
    accelerator('cuda', 2)
    assert find_device(None) == find_device('') == find_device('cuda') == torch.device('cuda:0')
    assert find_device('cuda:1') == torch.device('cuda:1') and find_device('cpu') == CPU
    with pytest.raises(InputError, match="--device 'cuda:2' is not on this machine; possible are cpu, cuda:0, cuda:1"):
        find_device('cuda:2')


@pytest.mark.parametrize('kind', ['mps', 'xpu'])
def test_other_accelerators_are_used_only_by_name(accelerator, kind):
    accelerator(kind, 1)
    assert find_device(None) == CPU and find_device(kind) == torch.device(kind, 0)


@pytest.mark.parametrize('name', ['gpu', 'meta', 'cpu:1', 'cuda:x'])
def test_unknown_devices(name):
    with pytest.raises(InputError, match=f"--device '{name}' is not on this machine; possible are cpu"):
        find_device(name)


def test_each_process_has_a_device_of_its_own(accelerator, monkeypatch):
    accelerator('cuda', 2)
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_RANK', '1')
    joined = []
    world = dict(device='cuda:1', global_rank=3, local_rank=1, world_size=4, distributed=True)
    monkeypatch.setattr('aa_models.device.init_distributed_device_so', lambda kind: joined.append(kind) or world)
    assert start_device('cuda') == Process(torch.device('cuda:1'), rank=3, local_rank=1, world_size=4)
    assert joined == ['cuda']
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(InputError, match="possible are cpu, cuda:0, cuda:1"):
        start_device(None)


def test_one_process_on_the_cpu():
    process = start_device(None if not torch.cuda.is_available() else 'cpu')
    assert process == Process(CPU) and not process.distributed
    cores = min(os.cpu_count(), torch.get_num_threads())
    assert machine_name(process) == f'{cores} CPU {"core" if cores == 1 else "cores"}'


@pytest.mark.parametrize('wanted', [True, False])
def test_deterministic_algorithms_are_a_switch_and_end_with_the_run(monkeypatch, wanted):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    with run.deterministic(wanted, torch.device('cuda')):
        assert torch.are_deterministic_algorithms_enabled() is wanted
        assert ('CUBLAS_WORKSPACE_CONFIG' in os.environ) is wanted
    assert not torch.are_deterministic_algorithms_enabled()
    with run.deterministic(wanted, CPU):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize('values, wanted', [({}, True), (dict(deterministic=False), False)])
def test_recipe_decides_on_deterministic_algorithms(tmp_path, data, monkeypatch, values, wanted):
    seen, deterministic = [], run.deterministic
    monkeypatch.setattr(run, 'deterministic', lambda *args: seen.append(args) or deterministic(*args))
    run_training(tmp_path / 'out', data, epochs=1, **values)
    assert seen == [(wanted, CPU)]
