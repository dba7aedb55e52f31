"""Names of classes: from folders named by WordNet identifiers to what `predict` prints."""
import json

import pytest
import timm
from huggingface_hub import ModelCard

from aa_models.data.known_datasets import known_dataset
from aa_models.data.labels import class_description, class_name, describe_synsets, known_outputs
from aa_models.data.tiny_imagenet import TINY_IMAGENET_LABELS
from command import answered
from training_runs import make_pictures, run_training

FISH, SALAMANDER = 'n01443537', 'n01629819'


@pytest.mark.parametrize('cfg, expected', [
    ({}, ('1', None)),
    (dict(label_names=('a', 'b')), ('b', None)),
    (dict(label_names=('a',)), ('1', None)),
    (dict(label_names={'0': 'a'}), ('1', None)),
    (dict(label_names={'1': 'b'}, label_descriptions={'b': 'a letter'}), ('b', 'a letter')),
    (dict(label_names=('a', 'b'), label_descriptions=('first', 'second')), ('b', 'second')),
    (dict(label_descriptions={'1': 'second'}), ('1', 'second')),
])
def test_every_form_that_timm_allows(cfg, expected):
    assert (class_name(cfg, 1), class_description(cfg, 1)) == expected


@pytest.mark.parametrize('cfg, names, expected', [
    ({}, ['0', '1', ''], {}),
    (dict(num_classes=1000), ['goldfish', 'Tinca_tinca', 'n01440764', 'fish'], {0: 1, 1: 0, 2: 0}),
    (dict(label_names=('b', 'lawn_mower')), ['lawn mower', 'a', 'B'], {0: 1, 2: 0}),
    (dict(label_names=('A', 'a')), ['a', 'A'], {0: 1, 1: 0}),
    (dict(label_names=('a', 'b'), label_descriptions=('crane, bird', 'crane, machine')), ['crane', 'bird', 'Machine'],
     {1: 0, 2: 1}),
    (dict(label_descriptions={'1': 'Second, 2nd'}), ['2nd', 'first'], {0: 1}),
])
def test_classes_of_a_dataset_that_a_model_knows(cfg, names, expected):
    assert known_outputs(names, cfg, cfg.get('num_classes', 2)) == expected


def test_synsets_in_words():
    assert describe_synsets([FISH, SALAMANDER]) == {
        FISH: 'goldfish, Carassius auratus', SALAMANDER: 'European fire salamander, Salamandra salamandra'}
    assert describe_synsets(['goldfish']) is describe_synsets([]) is describe_synsets(['n00000000']) is None


def test_classes_of_tiny_imagenet():
    names = list(TINY_IMAGENET_LABELS)
    assert len(names) == 200 and names == sorted(names)
    assert describe_synsets(names) == TINY_IMAGENET_LABELS
    assert TINY_IMAGENET_LABELS[FISH] == 'goldfish, Carassius auratus'
    assert known_dataset('', names).title == 'Tiny-ImageNet'
    assert known_dataset('', names[:-1]).title == known_dataset('').title == 'a private folder of images'


def test_from_folders_to_predictions(tmp_path, capsys):
    data = make_pictures(tmp_path / 'data', classes=2, each=4)
    for path in data.glob('*/class*'):
        path.rename(path.with_name(FISH if path.name == 'class0' else SALAMANDER))
    folder = run_training(tmp_path / 'out', data, '--tag', 'pond', epochs=1) / 'aa_simplecnn.pond'
    card = ModelCard.load(folder / 'README.md')
    assert f'1. `{SALAMANDER}` European fire salamander, Salamandra salamandra' in card.text
    cfg = timm.create_model(f'local-dir:{folder}').pretrained_cfg
    assert cfg['label_names'] == [FISH, SALAMANDER] and cfg['label_descriptions'][FISH] == 'goldfish, Carassius auratus'

    picture = next((data / 'train').rglob('*.png'))
    words = 'predict', picture, '--model', f'local-dir:{folder}'
    out = answered(capsys, *words)
    assert all(text in out for text in cfg['label_descriptions'].values())
    guess = json.loads(answered(capsys, *words, '--json'))[0]['predictions'][0]
    assert guess['description'] == cfg['label_descriptions'][guess['label']]
