"""Configs that timm and transformers read alike: what transformers does with one is done here without it."""
import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

import aa_models
from aa_models.data.labels import class_description, class_name
from aa_models.release.saving import for_transformers, save_folder
from aa_models.zoo import own_checkpoints
from repository import ROOT

SYNSETS = ['n01443537', 'n01629819']


def built_as_transformers_does(folder):
    """Its network and, from its file, the tensors by name."""
    config = json.loads((folder / 'config.json').read_text())
    model = timm.create_model(config['architecture'], num_classes=config['num_classes'], **config['model_args'])
    return model, load_file(folder / 'model.safetensors')


@pytest.mark.parametrize('name_tag', own_checkpoints())
def test_committed_folders(name_tag):
    """No argument is there twice, no tensor is missing or left over, and the classes have words."""
    folder = ROOT / 'weights' / name_tag
    model, tensors = built_as_transformers_does(folder)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in tensors.items()}
    config = json.loads((folder / 'config.json').read_text())
    words = list(config['id2label'].values()) if 'id2label' in config else config['label_names']
    assert len(words) == config['num_classes'] and not any(word.startswith('n0') for word in words)


@pytest.mark.parametrize('labels, words, shown', [
    (SYNSETS, dict(n01443537='goldfish', n01629819='salamander'), ['goldfish', 'salamander']),
    (SYNSETS, dict(n01443537='crane', n01629819='crane'), ['crane', 'crane']),
    (['red', 'green'], None, None), (SYNSETS, dict(n01443537='goldfish'), None), (None, None, None),
])
def test_config(labels, words, shown, tmp_path):
    model = timm.create_model('laa_simplecnn', num_classes=2)
    save_for_hf(model, tmp_path / 'timm', model_config=dict(label_names=labels, label_descriptions=words))
    save_folder(model, tmp_path / 'own', model_config=dict(label_names=labels, label_descriptions=words))
    as_timm, own = (json.loads((tmp_path / name / 'config.json').read_text()) for name in ('timm', 'own'))
    assert as_timm['model_args'] == {**own['model_args'], 'num_classes': 2}
    assert own.get('id2label') == (shown and dict(zip('01', shown)))
    assert own.get('label2id') == (shown and {text: i for i, text in enumerate(shown)} if shown != ['crane'] * 2
                                   else None)
    assert own.get('label_names') == (None if shown else labels)
    for key in ('label_names', 'label_descriptions'):  # timm reads the same from both
        cfgs = [timm.create_model(f'local-dir:{tmp_path / name}').pretrained_cfg for name in ('timm', 'own')]
        assert cfgs[0].get(key) == cfgs[1].get(key)
    assert for_transformers(own) == own and for_transformers(as_timm) == own
    cfg = timm.create_model(f'local-dir:{tmp_path / "own"}').pretrained_cfg
    assert cfg['num_classes'] == 2
    if labels:
        assert class_name(cfg, 1) == labels[1] and class_description(cfg, 0) == (words and words[labels[0]])


@torch.no_grad()
def test_a_network_whose_attention_began_without_a_constant(tmp_path):
    """Saved again, its file has all that its config makes: nothing is left as memory happened to be."""
    model = timm.create_model('aa_simplecnn.cifar100', pretrained=True).eval()
    save_folder(model, tmp_path)
    again, tensors = built_as_transformers_does(tmp_path)
    assert again.state_dict().keys() == tensors.keys()
    again.load_state_dict(tensors)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), model(x))


@torch.no_grad()
def test_converted_networks(tmp_path):
    model = aa_models.augment(timm.create_model('test_resnet', num_classes=3), where='layer4.*.conv1', dk=16, dv=8)
    save_folder(model, tmp_path)
    again, tensors = built_as_transformers_does(tmp_path)
    again.load_state_dict(tensors)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.eval()(x), model.eval()(x))
