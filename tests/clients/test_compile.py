"""torch.compile with `fullgraph`, forward and backward; `models/test_models.py` has every network."""
import copy

import pytest
import timm
import torch

import aa_models  # noqa: F401, registers the models

pytestmark = pytest.mark.clients


def test_training_step(fresh_compiler):
    model = timm.create_model('aa_simplecnn.cifar100', pretrained=True).eval()
    compiled, x = torch.compile(copy.deepcopy(model), fullgraph=True, backend='aot_eager'), torch.randn(2, 3, 32, 32)
    for net in (model, compiled):
        net(x).square().mean().backward()
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    for (name, own), other in zip(model.named_parameters(), compiled.parameters()):
        torch.testing.assert_close(other.grad, own.grad, rtol=1e-3, atol=1e-6, msg=name)
