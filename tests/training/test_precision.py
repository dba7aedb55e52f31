"""Mixed precision where the machine is fast in it: decided once, said, kept in the run."""
import dataclasses

import pytest
import torch
import yaml

from aa_models.device import Process
from aa_models.errors import InputError
from aa_models.training import loop, precision
from aa_models.training.recipe import load_recipe
from interruptions import lose_epochs
from training_runs import checkpoint_of, run_training, run_validation

CPU = Process(torch.device('cpu'))


@pytest.fixture
def has_bfloat16(monkeypatch):
    """Pretend that the CPU has instructions for bfloat16, or none."""
    def have(there):
        for module in ('training.precision', 'device'):
            monkeypatch.setattr(f'aa_models.{module}.multiplies', lambda dtype: there)
        monkeypatch.setattr(precision, 'instruction_sets', lambda: ('avx2', *['avx512_bf16'] * there))
    return have


@pytest.mark.parametrize('device, there, amp', [
    ('cpu', True, True), ('cpu', False, False), ('cuda', False, True), ('mps', True, False)])
def test_auto(has_bfloat16, device, there, amp):
    has_bfloat16(there)
    recipe = load_recipe('cifar100_resnet')
    decided = precision.with_precision(recipe, Process(torch.device(device)))
    assert recipe.amp == 'auto' and decided == dataclasses.replace(recipe, amp=amp)
    assert precision.precision_of(decided) == ('bfloat16 autocast' if amp else 'float32')


def test_mixed_precision_that_is_slow_warns_with_the_factor(has_bfloat16, monkeypatch, caplog):
    monkeypatch.setattr(precision, 'slowdown', lambda dtype: 35.04)
    for there, amp in ((True, True), (False, False), (False, True)):
        has_bfloat16(there)
        assert not caplog.records
        recipe = load_recipe('cifar100_resnet', amp=amp)
        assert precision.with_precision(recipe, CPU) == recipe
    assert 'no instructions for bfloat16, a convolution takes 35.0 times as long' in caplog.text


def test_a_run_goes_on_as_it_began(has_bfloat16, tmp_path, data, caplog, capsys):
    caplog.set_level('INFO')
    has_bfloat16(False)
    output = run_training(tmp_path / 'out', data, amp='auto', epochs=2)
    assert 'amp = auto: float32; ' in caplog.text and 'in float32, saved in' in caplog.text
    assert yaml.safe_load((output / 'recipe.yaml').read_text())['amp'] is False
    assert ', in float32. The epochs' in (output / 'aa_simplecnn.out' / 'README.md').read_text()
    weights = checkpoint_of(output)['state_dict']
    lose_epochs(output)
    has_bfloat16(True)
    caplog.clear()
    run_training(output, data, amp='auto', epochs=2)
    assert 'amp = auto: float32; as the run began' in caplog.text
    torch.testing.assert_close(checkpoint_of(output)['state_dict'], weights, rtol=0, atol=0)
    with pytest.raises(InputError, match='amp: '):
        run_training(output, data, amp=True, epochs=2)
    capsys.readouterr()
    run_validation('--model', f'local-dir:{output / "aa_simplecnn.out"}', '--data-dir', data, '--amp', 'auto')
    assert capsys.readouterr().out.strip().endswith(' s, bfloat16 autocast')


def test_convolutions_have_other_ways_in_bfloat16_alone(tmp_path, data, monkeypatch):
    calls = []
    monkeypatch.setattr(loop, 'speed_up_training', lambda *args: calls.append(args[1:]))
    run_training(tmp_path / 'float32', data, epochs=1)
    assert not calls
    run_training(tmp_path / 'bfloat16', data, epochs=1, amp=True)
    assert calls == [(CPU.device, 'bfloat16')]
