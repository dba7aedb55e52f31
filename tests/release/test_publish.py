"""`aa-models publish`: the Hub's own client puts exactly the checked folder on a Hub on this machine."""
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from aa_models.data.known_datasets import known_dataset
from aa_models.release.card import write_accuracy
from aa_models.release.publication import faults_of
from aa_models.release.results import read_results, update_results
from command import answered, refused, run_command
from hub_server import HubServer, send_client_to
from repository import ROOT

NAME_TAG = 'laa_simplecnn.cifar100'
REPO_ID = f'aa-models/{NAME_TAG}'
FILES = ['README.md', 'config.json', 'log.csv', 'model.safetensors', 'recipe.yaml']


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / 'hub') as hub:
        send_client_to(hub, tmp_path / 'cache', monkeypatch)
        monkeypatch.setenv('HF_TOKEN', hub.token)
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A copy of a committed checkpoint and of the table beside it."""
    shutil.copytree(ROOT / 'weights' / NAME_TAG, tmp_path / 'weights' / NAME_TAG)
    shutil.copy(ROOT / 'weights' / 'results-cifar100.csv', tmp_path / 'weights')
    return tmp_path / 'weights' / NAME_TAG


def test_published_folder_is_the_folder_and_loads(hub, capsys, tmp_path):
    """By the tag's name, from where the package finds its weights; a dry run sends nothing."""
    *lines, last = answered(capsys, 'publish', NAME_TAG, '--repo-id', REPO_ID, '--dry-run').splitlines()
    assert 'nothing was sent' in last and not hub.requests
    assert [Path(line.split(' (')[0]).name for line in lines] == FILES
    out = answered(capsys, 'publish', NAME_TAG, '--repo-id', REPO_ID)
    assert f'published: {hub.url}/{REPO_ID}/commit/' in out
    (summary, files), = hub.commits
    assert files == FILES and summary.startswith(f'{NAME_TAG}, aa_models ') and hub.private == {REPO_ID: False}
    for name in FILES:
        source = ROOT / 'weights' / NAME_TAG / name
        assert (hub.root / REPO_ID / name).read_bytes() == source.read_bytes(), name
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        there, here = (timm.create_model(name, pretrained=True).eval()(x) for name in (f'hf-hub:{REPO_ID}', NAME_TAG))
    assert torch.equal(there, here)


def test_private_and_as_a_pull_request(hub, folder, capsys):
    out = answered(capsys, 'publish', folder, '--repo-id', REPO_ID, '--private', '--create-pr')
    assert f'published: {hub.url}/{REPO_ID}/discussions/1' in out and hub.private == {REPO_ID: True}


def change_bias(folder, change):
    tensors = load_file(folder / 'model.safetensors')
    tensors['head.fc.bias'] = change(tensors['head.fc.bias'])
    save_file(tensors, folder / 'model.safetensors')


def replace_in(folder, name, old, new):
    text = (folder / name).read_text(encoding='utf-8')
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding='utf-8')


TABLE = '../results-cifar100.csv'
FAULTS = {  # what spoils the folder, its arguments and what is said of it
    'file missing': (lambda folder: (folder / 'log.csv').unlink(), 'log.csv is missing'),
    'file too many': (lambda folder: (folder / 'notes.txt').touch(), 'notes.txt does not belong there'),
    'other weights': (change_bias, torch.neg, 'is to have'),
    'float32': (change_bias, torch.Tensor.float, 'not in float16: head.fc.bias'),
    'infinite': (change_bias, lambda bias: bias / 0, 'not finite: head.fc.bias'),
    'truncated': (lambda folder: (folder / 'model.safetensors').write_bytes(b'123'), 'cannot be read'),
    'other model': (replace_in, 'config.json', '"laa_simplecnn"', '"simplecnn"', 'do not load'),
    'other tag': (replace_in, 'config.json', '"cifar100"', '"cifar10"', 'is of laa_simplecnn.cifar10, not of'),
    'no licence': (replace_in, 'README.md', 'license: apache-2.0\n', '', 'has no licence'),
    'no limits': (replace_in, 'README.md', '## Data, use and limits', '## Data', "no section 'Data, use and limits'"),
    'no accuracy': (replace_in, 'README.md', '| top-1 |', '| top |', 'has no accuracy'),
    'other accuracy': (replace_in, TABLE, f'{NAME_TAG},', f'{NAME_TAG},9', 'README.md says 58.880 and 86.040, '),
    'other accuracy in the metadata': (
        replace_in, 'README.md', 'value: 86.04', 'value: 96.04', 'model-index of README.md says 58.880 and 96.040, '),
    'metadata that are no YAML': (replace_in, 'README.md', 'license: apache', 'license: [', 'README.md cannot be read'),
    'metadata of another form': (replace_in, 'README.md', 'type: accuracy', 'typ: accuracy', 'cannot be read: '),
    'no figure': (replace_in, 'README.md', 'value: 86.04', 'value: high', 'says 58.880 and high, '),
    'no text': (lambda folder: (folder / 'README.md').write_bytes(b'\xff\xfe'), 'README.md cannot be read'),
    'no row': (replace_in, TABLE, NAME_TAG, 'other', f'no row of {NAME_TAG}'),
}


@pytest.mark.parametrize('fault', FAULTS.values(), ids=FAULTS)
def test_what_is_not_fit_is_not_sent(fault, hub, folder, capsys):
    spoil, *arguments, words = fault
    spoil(folder, *arguments)
    assert words in refused(capsys, 'publish', folder, '--repo-id', REPO_ID) and not hub.requests


def test_an_accuracy_without_an_end_is_that_of_the_table(folder):
    """The card has three decimals, the table four: 2 of 3 images right are 66.667 % and 66.6667 %."""
    table, figures = folder.parent / 'results-cifar100.csv', dict(top1=200 / 3, top5=250 / 3)
    row, = (row for row in read_results(table) if row['model'] == NAME_TAG)
    update_results(table, {**row, **{column: round(value, 4) for column, value in figures.items()}})
    faults = faults_of(folder, table, REPO_ID)
    assert len(faults) == 2 and all('results-cifar100.csv 66.667 and 83.333' in fault for fault in faults)
    write_accuracy(folder, figures, 12, known_dataset('torch/cifar100'), ['--dataset torch/cifar100'], 'test', '', '')
    assert not faults_of(folder, table, REPO_ID)


@pytest.mark.parametrize('name, repo_id, said', [
    ('nowhere', REPO_ID, 'neither a folder MODEL.TAG nor a checkpoint'),
    ('aa_resnet18.nothing', REPO_ID, 'neither a folder MODEL.TAG nor a checkpoint'),
    ('.', REPO_ID, 'neither a folder MODEL.TAG nor a checkpoint'),
    (NAME_TAG, f'me/{NAME_TAG}', f'does not say how to load hf-hub:me/{NAME_TAG}'),
])
def test_wrong_names(name, repo_id, said, hub, capsys):
    assert said in refused(capsys, 'publish', name, '--repo-id', repo_id) and not hub.requests


def test_refused_by_the_hub(hub, capsys, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    status, _, err = run_command(capsys, 'publish', NAME_TAG, '--repo-id', REPO_ID)
    assert status == 1 and 'publishing to aa-models/' in err and '401' in err and not hub.commits
    assert len(err.splitlines()) < 8 and 'Traceback' not in err
