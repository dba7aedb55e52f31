"""captum: gradients, integrated gradients and a layer's Grad-CAM."""
import pytest
import timm
import torch
import torch.nn.functional as F

import aa_models  # noqa: F401, registers the models

attr = pytest.importorskip('captum.attr')
pytestmark = pytest.mark.clients


@pytest.fixture(scope='module')
def model():
    return timm.create_model('aa_simplecnn.cifar100', pretrained=True).eval()


def test_saliency(model):
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    grad, = torch.autograd.grad(model(x)[:, 7].sum(), x)
    torch.testing.assert_close(attr.Saliency(model).attribute(x, target=7), grad.abs())


def test_integrated_gradients(model):
    """They add up to what the picture changes against black."""
    x = torch.randn(2, 3, 32, 32)
    found = attr.IntegratedGradients(model).attribute(x, target=7, n_steps=100, internal_batch_size=20)
    with torch.no_grad():
        expected = (model(x) - model(torch.zeros_like(x)))[:, 7]
    torch.testing.assert_close(found.sum((1, 2, 3)).float(), expected, rtol=0.03, atol=0.03)


def test_layer_grad_cam(model):
    layer, x = model.stages[1], torch.randn(1, 3, 32, 32)
    kept = []
    hook = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    logit = model(x)[0, 7]
    hook.remove()
    grad, = torch.autograd.grad(logit, kept[0])
    expected = F.relu((grad.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True))
    found = attr.LayerGradCam(model, layer).attribute(x, target=7, relu_attributions=True)
    torch.testing.assert_close(found, expected)
