"""What is known of the processor: from torch, from Linux, or nothing."""
import pytest
import torch

from aa_models import cpu

ARM = 'processor\t: 0\nFeatures\t: fp asimd svebf16 i8mm bf16\n'
ZEN3 = 'model name\t: AMD EPYC 7763\nflags\t\t: fpu sse avx2 fma\n'
SAPPHIRE = 'model name\t: Xeon\nflags\t\t: avx2 avx512f avx512_bf16 amx_bf16 amx_tile avx512_fp16\n'


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend to be on a machine."""
    def be(capabilities=None, cpuinfo=None):
        monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
        if capabilities is not None:
            monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)
        file = tmp_path / 'cpuinfo'
        file.unlink(missing_ok=True)
        if cpuinfo is not None:
            file.write_text(cpuinfo)
        monkeypatch.setattr(cpu, '_CPUINFO', file)
        cpu.instruction_sets.cache_clear()
        cpu.multiplies.cache_clear()
    yield be
    cpu.instruction_sets.cache_clear()
    cpu.multiplies.cache_clear()


@pytest.mark.parametrize('capabilities, cpuinfo, sets, bfloat16, float16', [
    (dict(avx2=True, avx512_f=True, avx512_bf16=True, amx_bf16=False, l2_cache_size=1, cpu_name='Zen 5'), None,
     ('avx2', 'avx512f', 'avx512_bf16'), True, False),
    (dict(avx2=True, avx512_bf16=False), SAPPHIRE, ('avx2',), False, False),
    (dict(neon=True, bf16=True), None, ('neon', 'bf16'), True, False),
    (None, ZEN3, ('avx2',), False, False),
    (None, SAPPHIRE, ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'avx512_fp16'), True, True),
    (None, ARM, ('neon', 'bf16', 'sve_bf16'), True, False),
    (None, '', (), False, False), (None, None, (), False, False)])
def test_instruction_sets(machine, capabilities, cpuinfo, sets, bfloat16, float16):
    machine(capabilities, cpuinfo)
    assert cpu.instruction_sets() == sets
    assert (cpu.multiplies(torch.bfloat16), cpu.multiplies(torch.float16)) == (bfloat16, float16)
    assert cpu.multiplies(torch.float32)


def test_name(machine):
    for capabilities, cpuinfo, name in ((dict(cpu_name='Zen 5'), ZEN3, 'Zen 5'), (None, ZEN3, 'AMD EPYC 7763')):
        machine(capabilities, cpuinfo)
        assert cpu.cpu_name() == name
    machine()
    assert cpu.cpu_name()


def test_slowdown_is_a_ratio_of_times():
    assert 0.02 < cpu.slowdown(torch.bfloat16) < 500
