"""Runs that start from other runs' weights."""
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from aa_models.training.initial import narrow_from, start_from, widen_from
from training_runs import RECIPE, assert_same_run, checkpoint_of, log_of, run_training


@pytest.fixture(scope='module')
def first(tmp_path_factory, data):
    """A run with an average of its weights."""
    return run_training(tmp_path_factory.mktemp('first') / 'run', data, '--tag', 'noise', epochs=1, ema=True, seed=7)


def model_of(**kwargs):
    return timm.create_model('aa_simplecnn', num_classes=3, **{**RECIPE['model_kwargs'], **kwargs})


@pytest.fixture(params=['run', 'checkpoint', 'safetensors', 'local-dir', 'folder'])
def source(request, first):
    folder = first / 'aa_simplecnn.noise'
    return str(dict(
        run=first, checkpoint=first / 'last.pth.tar', safetensors=folder / 'model.safetensors', folder=folder,
    ).get(request.param, f'local-dir:{folder}'))


def test_all_sources_hold_the_average(first, source):
    model = model_of()
    start_from(model, source)
    expected = checkpoint_of(first)['state_dict_ema']
    rtol = 0 if source.endswith(('run', 'tar')) else 2 ** -10  # folders have float16
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=rtol, atol=rtol / 100)


def test_tables_of_another_size_and_plain_weights(first, tmp_path):
    start_from(wide := model_of(img_size=32), str(first))
    assert wide.stages[0][1].conv.attn.rel_h.shape[0] > checkpoint_of(first)['state_dict'][
        'stages.0.1.conv.attn.rel_h'].shape[0]
    plain = timm.create_model('simplecnn', num_classes=3, channels=RECIPE['model_kwargs']['channels'])
    save_file(plain.state_dict(), tmp_path / 'plain.safetensors')
    start_from(model := model_of(), str(tmp_path / 'plain.safetensors'))
    assert torch.equal(model.stem.conv.weight, plain.stem.conv.weight)
    assert torch.equal(model.head.fc.weight, plain.head.fc.weight)


def test_a_run_starts_there_and_goes_on(tmp_path, data, first, caplog):
    with caplog.at_level('INFO'):
        output = run_training(
            tmp_path / 'same', data, '--initial-checkpoint', first, '--tag', 'noise', epochs=1, lr=1e-12,
            freeze_bn=True)
    assert f', from the weights in {first}' in caplog.text
    stored = load_file(first / 'aa_simplecnn.noise' / 'model.safetensors')
    torch.testing.assert_close(load_file(output / 'aa_simplecnn.noise' / 'model.safetensors'), stored)
    assert log_of(output)[0]['eval_top1'] == log_of(first)[0]['eval_top1']
    card = ' '.join((output / 'aa_simplecnn.noise' / 'README.md').read_text().split())
    assert 'trained from the weights of another run' in card and 'from scratch' not in card

    values = dict(epochs=2, initial_checkpoint=str(first), seed=1)
    unbroken = run_training(tmp_path / 'unbroken', data, **values)
    broken = shutil.copytree(unbroken, tmp_path / 'broken')
    for path in broken.glob('*.pth.tar'):
        if checkpoint_of(broken, path.name.removesuffix('.pth.tar'))['epoch'] == 1:
            path.unlink()
    assert_same_run(run_training(broken, data, **values), unbroken)


WIDE = {**RECIPE['model_kwargs'], 'channels': [16, 16, 32, 48, 32], 'num_heads': 4, 'dk': 16, 'dv': 16}


def test_a_wide_network_starts_as_a_narrow_one(tmp_path, data, first, source):
    """Its first epoch, which changes nothing here, is measured as the narrow network's last."""
    if source.endswith('safetensors'):  # beside its config
        (tmp_path / 'alone.safetensors').write_bytes(Path(source).read_bytes())
        with pytest.raises(ValueError, match='with widen: .* does not say of which network its weights are'):
            widen_from(model_of(**WIDE), str(tmp_path / 'alone.safetensors'), seed=1)
    model, narrow = model_of(**WIDE).eval(), model_of().eval()
    widen_from(model, source, seed=1)
    start_from(narrow, source)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), narrow(x), rtol=1e-4, atol=1e-4)


def test_a_run_that_widens(tmp_path, data, first, caplog):
    with caplog.at_level('INFO'):
        output = run_training(
            tmp_path / 'wide', data, '--initial-checkpoint', first, '--widen', epochs=1, lr=1e-12, freeze_bn=True,
            model_kwargs=WIDE)
    assert f', widened from the weights in {first}' in caplog.text
    (now,), (before,) = log_of(output), log_of(first)
    assert now['eval_top1'] == before['eval_top1']
    assert float(now['eval_loss']) == pytest.approx(float(before['eval_loss']), abs=1e-4)
    assert 'of a narrower network, which were widened' in ' '.join(
        (output / 'aa_simplecnn.wide' / 'README.md').read_text().split())


def test_a_run_that_narrows(tmp_path, data, first, caplog):
    """What was widened and not changed since is the narrow network again."""
    wide = run_training(
        tmp_path / 'wide', data, '--initial-checkpoint', first, '--widen', epochs=1, lr=1e-12, freeze_bn=True,
        model_kwargs=WIDE)
    with caplog.at_level('INFO'):
        output = run_training(
            tmp_path / 'narrow', data, '--initial-checkpoint', wide, '--narrow', epochs=1, lr=1e-12, freeze_bn=True)
    assert f', narrowed from the weights in {wide}' in caplog.text
    now, before = (load_file(run / name / 'model.safetensors') for run, name in (
        (output, 'aa_simplecnn.narrow'), (first, 'aa_simplecnn.noise')))
    torch.testing.assert_close(now, before, rtol=1e-2, atol=1e-3)
    assert 'of a wider network, which were narrowed' in ' '.join(
        (output / 'aa_simplecnn.narrow' / 'README.md').read_text().split())
    with pytest.raises(ValueError, match='with narrow: .* would become fewer'):
        narrow_from(model_of(**WIDE), str(first))


@pytest.mark.parametrize('values, message', [
    (dict(initial_checkpoint='nowhere'), "initial_checkpoint = 'nowhere' does not exist"),
    (dict(initial_checkpoint='local-dir:nowhere'), "initial_checkpoint = 'local-dir:nowhere' does not exist"),
    (dict(initial_checkpoint='{data}'), 'is a folder without weights'),
    (dict(initial_checkpoint='{data}/train/class0/0.png'), 'cannot be read: .* is no checkpoint'),
    (dict(initial_checkpoint='{first}', widen=True, model='laa_simplecnn'),
     'with widen: the networks are of different forms'),
    (dict(initial_checkpoint='{first}/run.json', widen=True), 'with widen: .* does not say of which network'),
    (dict(initial_checkpoint='{first}/run.json', narrow=True), 'with narrow: .* does not say of which network'),
    (dict(initial_checkpoint=''), "initial_checkpoint = '': String should have at least 1"),
    (dict(initial_checkpoint='{first}', pretrained=True), 'initial_checkpoint = .* and pretrained: give one of them'),
    (dict(initial_checkpoint='{first}', model_kwargs={**RECIPE['model_kwargs'], 'channels': [8, 8, 16, 16, 24]}),
     r'does not fit the model: .*conv.weight: the file has \(8, 16, 3, 3\), the model \(16, 16, 3, 3\)'),
    (dict(initial_checkpoint='{first}', model='test_resnet', model_kwargs={}),
     'does not fit the model: conv1.0.weight: the file has none'),
])
def test_impossible_starts_are_refused(tmp_path, data, first, values, message):
    values['initial_checkpoint'] = values['initial_checkpoint'].format(data=data, first=first)
    with pytest.raises((ValueError, RuntimeError, FileNotFoundError), match=message):
        run_training(tmp_path / 'out', data, **values)
    assert not (tmp_path / 'out').exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    weights = model_of().state_dict()
    weights['head.fc.bias'][0] = float('nan')
    save_file(weights, tmp_path / 'broken.safetensors')
    with pytest.raises(RuntimeError, match='head.fc.bias is infinite or not a number'):
        start_from(model_of(), str(tmp_path / 'broken.safetensors'))
