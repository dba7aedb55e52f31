"""grad-cam: seven of its methods, Grad-CAM against its formula."""
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

import aa_models  # noqa: F401, registers the models
from repository import ROOT

cam = pytest.importorskip('pytorch_grad_cam')
pytestmark = pytest.mark.clients
METHODS = ['GradCAM', 'HiResCAM', 'GradCAMPlusPlus', 'XGradCAM', 'EigenCAM', 'EigenGradCAM', 'LayerCAM']


@pytest.fixture(scope='module')
def case():
    """A network, a photograph (1, 3, 128, 128) and the class that it is given."""
    model = timm.create_model('aa_resnet18.tiny_in', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with Image.open(ROOT / 'tests' / 'photographs' / 'espresso.jpg') as picture, torch.no_grad():
        x = transform(picture.convert('RGB'))[None]
        return model, x, model(x).argmax().item()


@pytest.mark.parametrize('method', METHODS)
def test_methods(method, case):
    """At a whole stage and at the augmented convolution in it."""
    model, x, target = case
    for layer in (model.layer3, model.layer3[-1].conv2):
        with getattr(cam, method)(model, [layer]) as explain:
            heat = explain(x, [cam.utils.model_targets.ClassifierOutputTarget(target)])
        assert heat.shape == (1, 128, 128) and heat.min() >= 0 and heat.max() <= 1
        assert heat.max() > 0.9 and heat.std() > 0.01


def test_grad_cam_is_its_formula(case):
    """ReLU(Σ_c mean(∂y/∂A_c) A_c), from 0 to 1, stretched over the picture."""
    model, x, target = case
    with cam.GradCAM(model, [model.layer3]) as explain:
        heat = explain(x, [cam.utils.model_targets.ClassifierOutputTarget(target)])
    features = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x)))))))
    logit = model.forward_head(model.layer4(features))[0, target]
    grad, = torch.autograd.grad(logit, features)
    expected = F.relu((grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)).detach()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    stretched = F.interpolate(expected, size=(128, 128), mode='bilinear')[0]
    assert (torch.from_numpy(heat) - stretched).abs().max() < 0.02
