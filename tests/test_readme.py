"""The README tells the truth: its snippets run, its commands exist, its numbers are those of the models."""
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

from aa_models.analysis.macs import count_macs, in_giga
from aa_models.cli import main as cli
from aa_models.training.loaders import class_names, open_dataset
from aa_models.training.recipe import recipe_names
from aa_models.zoo import own_checkpoints, own_models

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
SNIPPETS = re.findall(r'^```python\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r'^```bash\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace('\\\n', ' ').splitlines()]
COMMANDS = [line for line in LINES if line.startswith(('aa-models ', 'torchrun '))]


def test_there_is_something_to_test():
    assert len(SNIPPETS) >= 6 and len(COMMANDS) >= 4


@pytest.mark.parametrize('snippet', SNIPPETS)
def test_snippet_runs(snippet):
    """In a process of its own, from the checkout, as a reader would paste it."""
    result = subprocess.run([sys.executable, '-c', snippet], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('command', COMMANDS)
def test_command_is_understood(command):
    """Its options and recipe exist. Training runs are in test_training.py: these here would take hours."""
    words = shlex.split(command, comments=True)
    words = words[words.index('aa_models' if words[0] == 'torchrun' else 'aa-models') + 1:]
    args = cli._parser().parse_args(words)
    if args.command == 'train':
        assert args.recipe in recipe_names()


def test_predict_command_answers(capsys):
    """What the first command does after installing."""
    photographs = REPOSITORY / 'tests' / 'photographs'
    table = (photographs / 'README.md').read_text(encoding='utf-8')
    shown = dict(re.findall(r'^\| (\S+) \| (n\d{8}) ', table, re.MULTILINE))
    assert cli.main(['predict', str(photographs), '--json']) == 0
    answers = json.loads(capsys.readouterr().out)
    assert sorted(Path(answer['file']).name for answer in answers) == sorted(shown)
    right = [
        shown[Path(answer['file']).name] in {guess['label'] for guess in answer['predictions']} for answer in answers]
    assert len(right) >= 4 and sum(right) > len(right) / 2


def test_tiny_imagenet_is_laid_out(tmp_path):
    """The README's lines turn the official archive's layout into folders of classes."""
    root = tmp_path / 'tiny-imagenet-200'
    (root / 'val' / 'images').mkdir(parents=True)
    annotations = []
    for i, wnid in enumerate(('n01443537', 'n01629819')):
        (root / 'train' / wnid / 'images').mkdir(parents=True)
        (root / 'train' / wnid / f'{wnid}_boxes.txt').touch()
        for path in (root / 'train' / wnid / 'images' / f'{wnid}_0.JPEG', root / 'val' / 'images' / f'val_{i}.JPEG'):
            Image.new('RGB', (64, 64)).save(path)
        annotations.append(f'val_{i}.JPEG\t{wnid}\t0\t0\t62\t63\n')
    (root / 'val' / 'val_annotations.txt').write_text(''.join(annotations))
    block, = (block for block in BLOCKS if 'val_annotations.txt' in block)
    subprocess.run(['bash', '-euo', 'pipefail', '-c', block], cwd=tmp_path, check=True)
    for split, expected in (('train', 'n01443537_0.JPEG n01629819_0.JPEG'), ('val', 'val_0.JPEG val_1.JPEG')):
        dataset = open_dataset('', str(root), split)
        assert class_names(dataset) == ['n01443537', 'n01629819']
        assert [Path(path).name for path, _ in dataset.reader.samples] == expected.split()
        assert [label for _, label in dataset] == [0, 1]


def test_linked_tests_exist():
    """The table of features links a test for each row."""
    links = re.findall(r'`(test_\w+\.py)::(test_\w+)` \|$', README, re.MULTILINE)
    assert len(links) > 20
    for file, name in links:
        assert f'\ndef {name}(' in (REPOSITORY / 'tests' / file).read_text(encoding='utf-8'), name


def test_zoo_table():
    """Every model stands in the table with its own figures, and a checkpoint with what its card and its file say."""
    zoo = README.partition('## Zoo')[2].partition('\n##')[0]
    table = [line.strip('|').split('|') for line in zoo.splitlines() if line.startswith('| `')]
    rows = {cells[0].strip('` '): [cell.strip() for cell in cells] for cells in table}
    checkpoints = own_checkpoints()
    for name in own_models():
        for key in [tag for tag in checkpoints if tag.split('.')[0] == name] or [name]:
            model = timm.create_model(key, device='meta')
            params = f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M'
            figures = [params, f'{model.pretrained_cfg["input_size"][1]} px', in_giga(count_macs(model))]
            assert rows[key][1:4] == figures, key
            assert rows[key][4:6] == (_accuracy_and_size(key) if key in checkpoints else ['–', '–']), key


def _accuracy_and_size(name_tag):
    folder = REPOSITORY / 'weights' / name_tag
    top1 = re.search(r'\| top-1 \| ([\d.]+) % \|', (folder / 'README.md').read_text(encoding='utf-8'))
    return [f'{float(top1[1]):.2f} %', f'{(folder / "model.safetensors").stat().st_size / 1e6:.1f} MB']
