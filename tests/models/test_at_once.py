"""Eight processes that begin at once with an empty cache: all have the one answer of a process alone."""
import hashlib
import json
import multiprocessing

import pytest
import timm
import torch

import aa_models
from aa_models.analysis.prediction import predict
from fake_weights import INPUT_SIZE, NAME, logits, put
from repository import LION


def answers():
    """A digest of all that a process computes, by what it does: equal ones are equal bit for bit."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, pretrained=True)
    net = timm.create_model('test_resnet', num_classes=3)
    aa_models.augment(net, where='layer4.*.conv2', dk=16, dv=16, num_heads=4)
    maps = aa_models.attention_maps(model, torch.randn(1, *INPUT_SIZE))
    found = dict(
        create_model=[logits(model)], augment=[*net.state_dict().values(), net.eval()(torch.randn(1, 3, 64, 64))],
        attention_maps=list(maps.values()))
    digests = {
        name: hashlib.sha256(b''.join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()
        for name, tensors in found.items()}
    return digests | dict(predict=json.dumps(list(predict(model, [LION], 3))))


def in_child(barrier, queue):
    barrier.wait(120)
    queue.put(answers())


@pytest.mark.slow
def test_one_answer(places, checkpoint):
    put(checkpoint, places['hub'])
    context = multiprocessing.get_context('fork')
    barrier, queue = context.Barrier(8), context.Queue()
    processes = [context.Process(target=in_child, args=(barrier, queue)) for _ in range(8)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert found == 8 * [answers()]
