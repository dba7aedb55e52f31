"""Weights that are not there or not right: one clear error, and nothing in them is run."""
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from aa_models.errors import WeightsError
from aa_models.zoo import expected_sha256
from fake_weights import NAME, NAME_TAG, NUM_CLASSES, logits, put


class Bomb:
    """What a pickle does when somebody loads it."""

    def __reduce__(self):
        return os.mkdir, ('exploded',)


def make_pointer(file):
    file.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n')


NO_SAFETENSORS = {
    'truncated': (lambda file: file.write_bytes(file.read_bytes()[:-1000]), 'truncated'),
    'empty': (lambda file: file.write_bytes(b''), 'truncated'),
    'pickle': (lambda file: file.write_bytes(pickle.dumps(Bomb())), 'a pickle'),
    'torch pickle': (lambda file: torch.save({'conv1.weight': torch.zeros(3)}, file), 'a pickle'),
    'pointer': (make_pointer, 'Git LFS pointer'),
}
FAULTS = {**NO_SAFETENSORS, 'other': (
    lambda file: save_file({'other': torch.zeros(3)}, file), 'another safetensors file')}


@pytest.mark.parametrize('place', ['variable', 'hub'])
@pytest.mark.parametrize('spoil, words', FAULTS.values(), ids=FAULTS)
def test_wrong_file(place, spoil, words, places, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = put(checkpoint, places[place])
    spoil(file)
    with pytest.raises(WeightsError) as error:
        timm.create_model(NAME, pretrained=True)
    message = str(error.value)
    found, wanted = hashlib.sha256(file.read_bytes()).hexdigest(), expected_sha256(timm.get_pretrained_cfg(NAME))
    for word in [words, found, wanted, str(places['package']), 'AA_MODELS_WEIGHTS', f'aa-models/{NAME_TAG}', 'absent']:
        assert word in message
    assert not Path('exploded').exists()


def test_wrong_file_is_passed_over_with_a_warning(places, checkpoint, expected, caplog):
    make_pointer(put(checkpoint, places['variable']))
    put(checkpoint, places['package'])
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)
    assert 'Git LFS pointer' in caplog.text


def test_nothing_found_offline(places, checkpoint, offline, monkeypatch):
    monkeypatch.delenv('AA_MODELS_WEIGHTS')
    with pytest.raises(WeightsError) as error:
        timm.create_model(NAME, pretrained=True)
    lines = str(error.value).splitlines()
    assert [line.split(':')[0].strip() for line in lines[1:-1]] == [
        '$AA_MODELS_WEIGHTS', 'current folder', 'checkout', 'installed package', 'Hub']
    assert 'offline' in lines[5] and 'pretrained=False' in lines[-1]


def test_nothing_on_the_hub(places, checkpoint):
    with pytest.raises(WeightsError, match=r'Hub: aa-models/.*(?s:RepositoryNotFoundError)'):
        timm.create_model(NAME, pretrained=True)


def test_name_without_weights(checkpoint):
    with pytest.raises(WeightsError, match=f'aa_resnet152 has no pretrained weights.*{NAME_TAG}'):
        timm.create_model('aa_resnet152', pretrained=True, device='meta')


@pytest.mark.parametrize('spoil, words', NO_SAFETENSORS.values(), ids=NO_SAFETENSORS)
@pytest.mark.parametrize('source', ['file', 'folder'])
def test_wrong_file_named_by_the_user(spoil, words, source, places, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = put(checkpoint, tmp_path)
    spoil(file)
    overlay = dict(pretrained_cfg_overlay=dict(file=str(file))) if source == 'file' else {}
    with pytest.raises(WeightsError, match=words) as error:
        timm.create_model(NAME if source == 'file' else f'local-dir:{file.parent}', pretrained=True, **overlay)
    assert str(file) in str(error.value) and not Path('exploded').exists()


def test_file_that_does_not_exist(checkpoint):
    with pytest.raises(WeightsError, match='nowhere.safetensors.*does not exist'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file='nowhere.safetensors'))


@pytest.mark.parametrize('num_classes', [NUM_CLASSES, 3])  # with another number of classes timm loads non-strictly
def test_foreign_tensors(num_classes, checkpoint, tmp_path):
    tensors = load_file(checkpoint / 'model.safetensors')
    overlay = dict(file=str(tmp_path / 'foreign.safetensors'))
    for change, words in [
        ({'backbone.stem.weight': torch.zeros(1)}, r'backbone.stem.weight: the file has \(1,\), the model none'),
        ({'stem.bn.weight': torch.zeros(3)}, r'stem.bn.weight: the file has \(3,\), the model \(32,\)'),
        ({'stem.bn.weight': None}, r'stem.bn.weight: the file has none, the model \(32,\)'),
    ]:
        save_file({n: t for n, t in {**tensors, **change}.items() if t is not None}, overlay['file'])
        with pytest.raises(WeightsError, match=words):
            timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes)


def test_another_architecture_than_the_weights(found):
    with pytest.raises(WeightsError, match='do not fit aa_simplecnn as asked for.*attn'):
        timm.create_model(NAME, pretrained=True, attn_stages=(False, True))
