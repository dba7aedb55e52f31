"""`aa-models export`: other runtimes give the model's numbers, at other batches and sizes too."""
import os
import subprocess
import sys

import onnxruntime
import pytest
import timm
import torch

from aa_models.release.runtimes import SUFFIXES, export_model
from command import answered, refused
from daily import daily
from fake_weights import INPUT_SIZE, save_checkpoint
from repository import ROOT
from torch_faults import skip_where_pooling_has_one_size

# a small form of each family
FAMILIES = {
    'aa_resnet18': dict(img_size=64, layers=(1, 1, 1, 1)),
    'laa_resnet18': dict(img_size=64, layers=(1, 1, 1, 1)),
    'aa_mnasnet_100': dict(
        img_size=64, channel_multiplier=0.25, depth_multiplier=0.5, num_features=64, dk=16, dv=8, num_heads=2),
    'aa_wrn16_8': dict(width=1, img_size=16, dk=16, dv=8),
    'laa_wrn16_8': dict(width=1, img_size=16, dk=16, dv=8),
    'aa_simplecnn': dict(pos_embed='coord'),
    'laa_simplecnn': {},
}
SIZES = {64: [(1, 64, 64), (3, 96, 64), (2, 49, 130)], 16: [(1, 16, 16), (3, 24, 16), (2, 13, 31)]}


def run_onnx(file, x):
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    assert [node.name for node in (*session.get_inputs(), *session.get_outputs())] == ['input', 'logits']
    return torch.from_numpy(session.run(None, {'input': x.numpy()})[0])


RUN = {'onnx': run_onnx, 'torch-export': lambda file, x: torch.export.load(file).module()(x)}


@torch.no_grad()
def check_sizes(name, format, file, tolerance):
    model = timm.create_model(name, num_classes=7, **FAMILIES[name]).eval()
    size = FAMILIES[name].get('img_size', 16)
    export_model(model, (1, 3, size, size), file, format, dynamic=True)
    for batch, height, width in SIZES[size]:
        x = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(RUN[format](file, x), model(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', daily(FAMILIES, 'laa_simplecnn'))
def test_onnx_of_any_batch_and_size(name, tmp_path):
    check_sizes(name, 'onnx', tmp_path / 'model.onnx', 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['aa_resnet18', 'laa_wrn16_8'])
def test_program_of_any_batch_and_size(name, tmp_path):
    if 'resnet' in name:
        skip_where_pooling_has_one_size()
    check_sizes(name, 'torch-export', tmp_path / 'model.pt2', 1e-5)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights') / 'aa_simplecnn'
    save_checkpoint(folder)
    return folder


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """The current one."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize('format, name', [('onnx', 'aa_simplecnn.onnx'), ('torch-export', 'aa_simplecnn.pt2')])
@torch.no_grad()
def test_command(format, name, checkpoint, tmp_path, capsys):
    out = answered(capsys, 'export', f'local-dir:{checkpoint}', '--format', format, '--batch-size', '2')
    assert [line.split()[0] for line in out.splitlines()] == ['tracing', 'wrote']
    assert out.splitlines()[-1].startswith(f'wrote {name} (') and 'input 2x3x24x32' in out
    assert [path.name for path in tmp_path.iterdir()] == [name]
    model, x = timm.create_model(f'local-dir:{checkpoint}', pretrained=True).eval(), torch.randn(2, *INPUT_SIZE)
    torch.testing.assert_close(RUN[format](tmp_path / name, x), model(x), rtol=1e-4, atol=1e-4)


def test_a_path_is_no_name(tmp_path, capsys):
    assert "model = 'output/typo': " in refused(
        capsys, 'export', 'output/typo', '--format', 'onnx', '--output', tmp_path / 'x.onnx')


@pytest.mark.parametrize('name, here', [('local-dir:mine', '.'), ('./', 'mine'), ('./mine/', '.')])
def test_a_folder_gives_the_file_its_name(name, here, tmp_path, monkeypatch, capsys):
    save_checkpoint(tmp_path / 'mine')
    monkeypatch.chdir(tmp_path / here)
    assert 'wrote mine.pt2 (' in answered(capsys, 'export', name, '--format', 'torch-export')
    assert (tmp_path / here / 'mine.pt2').is_file()


@pytest.mark.parametrize('format', daily(['onnx', 'torch-export'], 'torch-export'))
@torch.no_grad()
def test_same_padding_is_exported_for_one_size(format, tmp_path, capsys):
    model = timm.create_model(
        'aa_efficientnet_lite0', channel_multiplier=0.25, depth_multiplier=0.5, num_features=64, num_classes=7,
        img_size=64)
    timm.models.save_for_hf(model, 'lite', safe_serialization=True)
    words = ['export', 'local-dir:lite', '--format', format]
    err = refused(capsys, *words, '--dynamic')
    assert "conv_stem has 'same' padding" in err and len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['lite']
    answered(capsys, *words, '--img-size', 70, 45, '--batch-size', 3)
    file, x = next(tmp_path.glob('*lite.*')), torch.randn(3, 3, 70, 45)
    torch.testing.assert_close(RUN[format](file, x), model.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('words, message', [
    (['aa_resnet19', '--format', 'onnx'], 'aa_resnet19'),
    (['aa_resnet152', '--format', 'onnx'], 'has no pretrained weights'),
    (['aa_resnet18', '--format', 'tflite'], 'invalid choice'),
    (['aa_resnet18', '--format', 'onnx', '-o', 'model.pt2'], "output = 'model.pt2' must be a .onnx file"),
    (['aa_resnet18', '--format', 'torch-export', '-o', 'nowhere/a.pt2'], 'does not exist'),
    (['aa_resnet18', '--format', 'onnx', '--batch-size', '0'], 'batch_size = 0 must be at least 1'),
    (['aa_resnet18', '--format', 'onnx', '--img-size', '0', '3'], 'img_size = 0 3 must be at least 1'),
])
def test_what_cannot_be_exported(words, message, tmp_path, capsys):
    assert message in refused(capsys, 'export', *words) and not list(tmp_path.iterdir())


def test_a_size_that_the_model_does_not_take(tmp_path, capsys):
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1, num_classes=2)
    timm.models.save_for_hf(model, 'vit', safe_serialization=True)
    err = refused(capsys, 'export', 'local-dir:vit', '--format', 'torch-export', '--img-size', 64, 80)
    assert 'the model takes no images of 64x80 pixels' in err and len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['vit']


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert "pip install 'aa-models[export]'" in refused(capsys, 'export', 'aa_resnet18', '--format', 'onnx')


@pytest.mark.parametrize('format', ['onnx', 'torch-export'])
def test_no_room_for_the_file(format, checkpoint, tmp_path):
    """Writers in C++ may end the process; here one line says what happened, and nothing is left."""
    words = ['export', f'local-dir:{checkpoint}', '--format', format, '-o', 'model' + SUFFIXES[format]]
    code = ('import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
            f'from aa_models.cli.main import main; sys.exit(main({words!r}))')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and 'cannot be written: ' in done.stderr.splitlines()[-1], done.stderr
    assert 'Traceback' not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize('words', [['--batch-size', '10000000'], ['--img-size', '3000000', '3000000']])
def test_more_than_the_memory(words, checkpoint, tmp_path, capsys):
    err = refused(capsys, 'export', f'local-dir:{checkpoint}', '--format', 'onnx', *words)
    assert 'would take' in err and 'AA_MODELS_MAX_GB' in err and not list(tmp_path.iterdir())


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, 'save', lambda program, file: (file.write(b'half'), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        export_model(timm.create_model('simplecnn').eval(), (1, 3, 32, 32), tmp_path / 'model.pt2')
    assert not list(tmp_path.iterdir())
