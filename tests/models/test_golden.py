"""Committed checkpoints give the stored answers again."""
import json

import pytest
import torch

import golden
from aa_models.zoo import own_checkpoints


def test_there_are_checkpoints():
    assert {'aa_resnet18.cifar100', 'aa_resnet18.tiny_in'} < set(own_checkpoints())


@pytest.mark.parametrize('name_tag', own_checkpoints())
def test_golden(name_tag):
    stored = json.loads((golden.FOLDER / f'{name_tag}.json').read_text(encoding='utf-8'))
    answers = golden.compute(name_tag)
    assert answers.keys() == stored.keys() and len(answers) >= 4
    for name, answer in answers.items():
        assert answer['top5'] == stored[name]['top5'], name
        torch.testing.assert_close(
            torch.tensor(answer['logits']), torch.tensor(stored[name]['logits']), rtol=1e-3, atol=1e-3, msg=name)
