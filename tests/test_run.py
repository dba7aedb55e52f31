"""Scripts that know timm alone, run with this package's models."""
import json
import os
import subprocess
import sys

import pytest
import timm
import torch

import aa_models  # noqa: F401, registers the models

# what timm's validate.py and its like do: options, a file beside the script, `create_model`, a loader's processes
SCRIPT = """
import argparse, json, sys
import torch, timm
from helper import SIZE
from timm.data import create_dataset, create_loader

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('data')
    parser.add_argument('--model')
    args = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(args.model, pretrained=True).eval()
    loader = create_loader(
        create_dataset('', args.data), (3, SIZE, SIZE), 2, use_prefetcher=False, num_workers=1,
        **{k: v for k, v in timm.data.resolve_data_config(model=model).items() if k in ('mean', 'std')})
    with torch.inference_mode():
        logits = torch.cat([model(pictures) for pictures, _ in loader])
    print(json.dumps([logits.tolist(), sys.argv[0], timm.is_model('aa_resnet18')]))
"""


def run(*words, folder):
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONSTARTUP'}
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp('timm')
    (folder / 'script.py').write_text(SCRIPT)
    (folder / 'helper.py').write_text('SIZE = 32\n')
    for i in range(3):
        (folder / 'data' / f'class{i}').mkdir(parents=True)
        Image.new('RGB', (32, 32), (80 * i, 40, 200)).save(folder / 'data' / f'class{i}' / 'picture.png')
    return folder / 'script.py'


def test_a_script_of_timms(script):
    words = script, 'data', '--model', 'aa_simplecnn.cifar100'
    alone = run(*words, folder=script.parent)
    assert alone.returncode == 1 and 'RuntimeError: Unknown model (aa_simplecnn)' in alone.stderr
    done = run('-m', 'aa_models.run', *words, folder=script.parent)
    assert done.returncode == 0, done.stderr
    logits, name, known = json.loads(done.stdout.splitlines()[-1])
    assert name == str(script) and known
    model = timm.create_model('aa_simplecnn.cifar100', pretrained=True).eval()
    cfg = model.pretrained_cfg
    colours = torch.tensor([[80 * i, 40, 200] for i in range(3)])[..., None, None].expand(3, 3, 32, 32) / 255
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    with torch.inference_mode():
        torch.testing.assert_close(torch.tensor(logits), model((colours - mean) / std), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('words, message', [
    ([], 'usage: python -m aa_models.run SCRIPT'), (['--help'], 'usage: python -m aa_models.run SCRIPT'),
    (['nowhere.py', '--model', 'x'], "'nowhere.py' is no file\nusage: "),
])
def test_no_script(words, message, tmp_path, monkeypatch):
    from aa_models.run import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['aa_models.run', *words])
    with pytest.raises(SystemExit, match=message):
        main()
