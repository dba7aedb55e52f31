"""timm's own scripts, from the folder of its source that the environment variable TIMM_SOURCE names.

They are in no package. `test_run.py` has every day a script that does what they do.
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import aa_models
from aa_models.examples import shapes

SOURCE = os.environ.get('TIMM_SOURCE')
pytestmark = [pytest.mark.clients, pytest.mark.skipif(not SOURCE, reason='TIMM_SOURCE names no source of timm')]
MODEL = ['--model', 'aa_simplecnn.cifar100', '--pretrained']


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes') / 'shapes'
    shapes.write_folder(folder, train=2, validation=1)
    return folder


def run(*words):
    """What `python WORDS` prints; the source folder is not where it runs, or it would hide the installed timm."""
    root = str(Path(aa_models.__file__).parents[1])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([root, os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def script(name, *words):
    return run('-m', 'aa_models.run', Path(str(SOURCE)) / name, *words)


def test_validate(pictures):
    text = script('validate.py', pictures / 'validation', *MODEL, '--device', 'cpu', '-b', 4, '-j', 0)
    result, _ = json.JSONDecoder().raw_decode(text.partition('--result')[2].lstrip())  # the log comes after it
    assert result['param_count'] == 0.34 and result['img_size'] == 32 and 0 <= result['top1'] <= 100


def test_inference(pictures, tmp_path):
    script('inference.py', pictures / 'validation', *MODEL, '--device', 'cpu', '-b', 4, '-j', 0, '--fullname',
           '--results-dir', tmp_path, '--results-format', 'csv')
    file, = tmp_path.glob('*.csv')
    assert len(file.read_text().splitlines()) == 1 + len(shapes.SHAPES)


def test_benchmark():
    text = script('benchmark.py', '--model', 'aa_simplecnn.cifar100', '--device', 'cpu', '-b', 2, '--bench',
                  'inference', '--num-bench-iter', 5, '--num-warm-iter', 1, '--precision', 'float32')
    assert '"param_count": 0.34' in text and float(re.search(r'"infer_samples_per_sec": ([\d.]+)', text)[1]) > 0


def test_onnx_export(tmp_path):
    import onnxruntime

    script('onnx_export.py', tmp_path / 'model.onnx', '--model', 'aa_simplecnn.cifar100', '--check-forward')
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'))
    assert session.get_outputs()[0].shape[1] == 100


def test_train(pictures, tmp_path):
    run(Path(str(SOURCE)) / 'train.py', pictures, '--device-modules', 'aa_models', '--device', 'cpu', '--model',
        'aa_simplecnn', '--pretrained', '--num-classes', 8, '--epochs', 1, '--warmup-epochs', 0, '--cooldown-epochs', 0,
        '-b', 4, '-j', 0, '--img-size', 32, '--output', tmp_path, '--experiment', 'run')
    model = timm.create_model(
        'aa_simplecnn', num_classes=8, checkpoint_path=str(tmp_path / 'run' / 'last.pth.tar'))
    assert model.num_classes == 8 and (tmp_path / 'run' / 'summary.csv').is_file()
