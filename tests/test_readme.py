"""The README files tell the truth: snippets run, commands and links exist, numbers are those of the models."""
import argparse
import json
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from aa_models.training.datasets import class_names, open_dataset
from aa_models.training.recipe import recipe_names
from aa_models.zoo import own_checkpoints, read_zoo
from command import answered
from repository import ROOT, measured, rows_of

# of the project and of its rooms; the cards of checkpoints and the list of photographs have tests of their own
FILES = [ROOT / 'README.md', ROOT / 'tests' / 'README.md', ROOT / 'weights' / 'README.md',
         *sorted((ROOT / 'aa_models').glob('*/README.md'))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8') for path in FILES}
README, RESULTS = TEXTS['README.md'], TEXTS['weights/README.md']


def fenced(language):
    """Each block of code in that language: the file's name, whether it is marked slow, and the code."""
    pattern = rf'^(<!-- slow -->\n)?```{language}\n(.*?)^```$'
    return [(name, bool(slow), code)
            for name, text in TEXTS.items() for slow, code in re.findall(pattern, text, re.MULTILINE | re.DOTALL)]


BLOCKS = fenced('bash')
COMMANDS = [(name, line) for name, _, block in BLOCKS for line in block.replace('\\\n', ' ').splitlines()
            if re.match(r'aa-models |torchrun |python -m aa_models', line)]


@pytest.fixture(scope='module')
def fresh_process():
    """Runs code in a process of its own that has imported torch and timm but nothing of this package."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['timm', 'torchvision'])
    with context.Pool(1, initializer=os.chdir, initargs=(ROOT,), maxtasksperchild=1) as pool:
        # a process that dies leaves no answer, hence the limit
        yield lambda code: pool.apply_async(exec, (code, {'__name__': '__main__'})).get(300)


@pytest.mark.parametrize('snippet', [
    pytest.param(code, id=f'{name}-{i}', marks=[pytest.mark.slow] if slow else [])
    for i, (name, slow, code) in enumerate(fenced('python'))])
def test_snippet_runs(fresh_process, snippet):
    """By itself, from the checkout, as a reader would paste it."""
    fresh_process(snippet)


class Parsed(BaseException):
    """Stops a command once its words are understood; no program catches it."""


@pytest.mark.parametrize('name, command', COMMANDS)
def test_command_is_understood(name, command, monkeypatch):
    """Its options and recipe exist. Training runs are in training/test_training.py: these here would take hours."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args, **kwargs):
        raise Parsed(parse_args(*args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
    module, *words = shlex.split(re.sub('^aa-models|^.* -m aa_models', 'aa_models', command), comments=True)
    monkeypatch.setattr('sys.argv', [module, *words])
    if module != 'aa_models':
        monkeypatch.delitem(sys.modules, module, raising=False)  # so that it runs from the start
    with pytest.raises(Parsed) as parsed:
        runpy.run_module(module, run_name='__main__')
    args, = parsed.value.args
    if words[:1] == ['train']:
        assert args.recipe in (*recipe_names(), 'RECIPE') or (ROOT / args.recipe).is_file()


@pytest.mark.parametrize('name', TEXTS)
def test_links(name):
    """Links to files and to headings lead somewhere, from the folder the file is in."""
    prose = re.sub(r'^```.*?^```$', '', TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', prose):
        if re.match(r'https?:', target):
            continue
        file, _, heading = target.partition('#')
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        if heading:
            headings = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), re.MULTILINE)
            assert heading in [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in headings], target


def test_readme_is_short():
    """Tables are left out: they grow with the networks, and with the tools that take them."""
    assert len(re.sub(r'^\|.*', '', README, flags=re.MULTILINE).split()) <= 1400


def test_predict_command_answers(capsys):
    """What the first command does after installing, and what README shows of its answers."""
    photographs = ROOT / 'tests' / 'photographs'
    table = (photographs / 'README.md').read_text(encoding='utf-8')
    shown = dict(re.findall(r'^\| (\S+) \| (n\d{8}) ', table, re.MULTILINE))
    answers = json.loads(answered(capsys, 'predict', photographs, '--json'))
    answers = {Path(answer['file']).name: answer['predictions'] for answer in answers}
    assert sorted(answers) == sorted(shown)
    right = [wnid in {guess['label'] for guess in answers[name]} for name, wnid in shown.items()]
    assert len(right) >= 4 and sum(right) > len(right) / 2
    _, _, excerpt = README.partition('```text\ntests/photographs/')
    name, *lines = excerpt.partition('\n```')[0].splitlines()
    for line, guess in zip(lines, answers[name][:len(lines)], strict=True):
        percent, words = line.split('%  ')
        assert words == guess['description'] and float(percent) == pytest.approx(100 * guess['probability'], abs=0.1)


def test_tiny_imagenet_is_laid_out(tmp_path):
    """The lines of weights/README.md turn the official archive's layout into folders of classes."""
    root, wnids = tmp_path / 'tiny-imagenet-200', ['n01443537', 'n01629819']
    (root / 'val' / 'images').mkdir(parents=True)
    for i, wnid in enumerate(wnids):
        (root / 'train' / wnid / 'images').mkdir(parents=True)
        (root / 'train' / wnid / f'{wnid}_boxes.txt').touch()
        for path in (root / 'train' / wnid / 'images' / f'{wnid}_0.JPEG', root / 'val' / 'images' / f'val_{i}.JPEG'):
            Image.new('RGB', (64, 64)).save(path)
    (root / 'val' / 'val_annotations.txt').write_text(
        ''.join(f'val_{i}.JPEG\t{wnid}\t0\t0\t62\t63\n' for i, wnid in enumerate(wnids)))
    block, = (block for _, _, block in BLOCKS if 'val_annotations.txt' in block)
    subprocess.run(['bash', '-euo', 'pipefail', '-c', block], cwd=tmp_path, check=True)
    for split, expected in (('train', 'n01443537_0.JPEG n01629819_0.JPEG'), ('val', 'val_0.JPEG val_1.JPEG')):
        dataset = open_dataset('', str(root), split)
        assert class_names(dataset) == wnids
        assert [Path(path).name for path, _ in dataset.reader.samples] == expected.split()
        assert [label for _, label in dataset] == [0, 1]


def test_linked_tests_exist():
    """The tables of tests/README.md name a test in each row."""
    links = re.findall(r'`([a-z]+/test_\w+\.py)::(test_\w+)` \|$', TEXTS['tests/README.md'], re.MULTILINE)
    assert len(links) > 35
    for file, name in links:
        assert f'\ndef {name}(' in (ROOT / 'tests' / file).read_text(encoding='utf-8'), name


def test_zoo_table():
    """Every model stands in the table with its own figures, a checkpoint with its accuracy."""
    rows = rows_of(README, 'Zoo')
    for row in read_zoo():
        if row.weights != 'to fine-tune':
            top1 = f'{float(measured(row.name)["top1"]):.2f}' if row.weights == 'yes' else '–'
            size = row.input_size.rpartition('x')[2]
            assert rows[row.name] == [f'{row.params / 1e6:.2f}', size, row.gmacs, top1], row.name


@pytest.mark.parametrize('name_tag', own_checkpoints())
def test_table_of_checkpoints(name_tag):
    row, size = measured(name_tag), (ROOT / 'weights' / name_tag / 'model.safetensors').stat().st_size / 1e6
    travels = f"'weights/{name_tag}'" in (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    assert rows_of(RESULTS, 'Weights and results')[name_tag] == [
        f'{float(row["top1"]):.2f} %', f'{float(row["top5"]):.2f} %', f'{size:.1f} MB', 'yes' if travels else 'no']
