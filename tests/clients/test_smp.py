"""segmentation-models-pytorch: encoders `tu-…`, with weights, at strides 8 and 16."""
import pytest
import timm
import torch
import torch.nn.functional as F

import aa_models  # noqa: F401, registers the models

smp = pytest.importorskip('segmentation_models_pytorch')
pytestmark = pytest.mark.clients


@pytest.mark.parametrize('stride', [8, 16, 32])
@torch.no_grad()
def test_encoder(stride):
    """Its features are timm's, of the pretrained network."""
    encoder = smp.encoders.get_encoder('tu-aa_resnet18', weights=True, output_stride=stride).eval()
    own = timm.create_model('aa_resnet18', pretrained=True, features_only=True, output_stride=stride).eval()
    x = torch.randn(1, 3, 64, 96)
    features = encoder(x)
    assert torch.equal(features[0], x) and all(map(torch.equal, features[1:], own(x)))
    assert features[-1].shape[2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize('architecture, options', [
    ('Unet', {}), ('DeepLabV3Plus', dict(encoder_output_stride=16)), ('DeepLabV3', dict(encoder_output_stride=8))])
def test_networks_learn(architecture, options):
    torch.manual_seed(0)
    make = getattr(smp, architecture)
    model = make('tu-aa_resnet18', encoder_weights=True, classes=2, **options).eval().double()  # without dropout, exact
    x, masks = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.randint(2, (2, 64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        logits = model(x)
        assert logits.shape == (2, 2, 64, 64)
        losses.append(F.cross_entropy(logits, masks))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]
    assert model.encoder.model.layer4[0].conv1.attn.proj.weight.grad.any()
