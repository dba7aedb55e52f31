"""grad-cam: seven of its methods, Grad-CAM against its formula."""
import pytest
import timm
import torch
import torch.nn.functional as F

import aa_models  # noqa: F401, registers the models

cam = pytest.importorskip('pytorch_grad_cam')
pytestmark = pytest.mark.clients
METHODS = ['GradCAM', 'HiResCAM', 'GradCAMPlusPlus', 'XGradCAM', 'EigenCAM', 'EigenGradCAM', 'LayerCAM']


@pytest.fixture(scope='module')
def model():
    return timm.create_model('aa_resnet18', pretrained=True).eval()


@pytest.mark.parametrize('method', METHODS)
def test_methods(method, model):
    """At a whole stage and at the augmented convolution in it."""
    x, target = torch.randn(1, 3, 96, 96), cam.utils.model_targets.ClassifierOutputTarget(3)
    for layer in (model.layer3, model.layer3[-1].conv2):
        with getattr(cam, method)(model, [layer]) as explain:
            heat = explain(x, [target])
        assert heat.shape == (1, 96, 96) and heat.min() >= 0 and heat.max() <= 1
        assert heat.max() > 0 and heat.std() > 0


def test_grad_cam_is_its_formula(model):
    """ReLU(Σ_c mean(∂y/∂A_c) A_c), from 0 to 1, stretched over the picture."""
    x = torch.randn(1, 3, 96, 96)
    with cam.GradCAM(model, [model.layer3]) as explain:
        heat = explain(x, [cam.utils.model_targets.ClassifierOutputTarget(3)])
    features = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x)))))))
    logit = model.forward_head(model.layer4(features))[0, 3]
    grad, = torch.autograd.grad(logit, features)
    expected = F.relu((grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)).detach()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    small = F.interpolate(torch.from_numpy(heat)[None], size=expected.shape[2:], mode='area')
    assert torch.corrcoef(torch.stack([small.flatten(), expected.flatten()]))[0, 1] > 0.95
