"""Golden logits: what a committed checkpoint says of the test pictures.

    python tests/golden.py aa_resnet18.cifar100   # writes tests/golden/aa_resnet18.cifar100.json

Written once, when a checkpoint is committed; from then on it must not change.
"""
import json
import sys

import timm
import torch
from timm.data import create_transform, resolve_data_config

import aa_models  # noqa: F401, registers the models
from aa_models.data.pictures import find_pictures, read_picture
from repository import TESTS

FOLDER = TESTS / 'golden'
PICTURES = {
    **dict.fromkeys(('cifar100', 'muon_cifar100'), TESTS / 'pictures'),
    **dict.fromkeys(('tiny_in', 'muon_tiny_in', 'in1k'), TESTS / 'photographs')}


@torch.inference_mode()
def compute(name_tag):
    """Logits and the five most probable classes of every test picture, by its file name."""
    model = timm.create_model(name_tag, pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model))
    labels = model.pretrained_cfg['label_names']
    answers = {}
    for path in find_pictures([PICTURES[name_tag.partition('.')[2]]]):
        logits = model(transform(read_picture(path))[None])[0]
        answers[path.name] = dict(
            top5=[labels[i] for i in logits.topk(5).indices], logits=[round(v, 5) for v in logits.tolist()])
    return answers


if __name__ == '__main__':
    FOLDER.mkdir(exist_ok=True)
    lines = ',\n'.join(f'{json.dumps(name)}: {json.dumps(answer)}' for name, answer in compute(sys.argv[1]).items())
    (FOLDER / f'{sys.argv[1]}.json').write_text(f'{{\n{lines}\n}}\n', encoding='utf-8')
