"""torchvision's detectors on augmented features; `models/test_detection.py` has RetinaNet, every day."""
import pytest
import timm
import torch
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import aa_models  # noqa: F401, registers the models

pytestmark = pytest.mark.clients


@pytest.mark.parametrize('detector, sizes', [(FasterRCNN, (16, 32, 64, 96)), (MaskRCNN, (16, 32, 64, 96)),
                                             (FCOS, (8, 16, 32, 64))])
def test_detectors(detector, sizes):
    body = timm.create_model('aa_resnet18', pretrained=True, features_only=True, out_indices=(2, 3, 4))
    layers = {module: str(i) for i, module in enumerate(body.feature_info.module_name())}
    backbone = BackboneWithFPN(body, layers, body.feature_info.channels(), 32)
    ratios = (1.,) if detector is FCOS else (0.5, 1., 2.)
    generator = AnchorGenerator(tuple((size,) for size in sizes), (ratios,) * 4)
    name = 'anchor_generator' if detector is FCOS else 'rpn_anchor_generator'
    model = detector(backbone, num_classes=2, min_size=96, max_size=128, **{name: generator})
    with torch.no_grad():
        x = torch.randn(1, 3, 96, 128)
        found = backbone.eval().body(x)
        own = timm.create_model('aa_resnet18', pretrained=True, features_only=True, out_indices=(2, 3, 4)).eval()(x)
    assert all(map(torch.equal, found.values(), own))
    target = dict(boxes=torch.tensor([[20., 10., 70., 60.]]), labels=torch.tensor([1]))
    target['masks'] = torch.zeros(1, 96, 128, dtype=torch.uint8)
    target['masks'][:, 10:60, 20:70] = 1
    losses = model.train()([torch.rand(3, 96, 128)], [target])
    sum(losses.values()).backward()
    grad = body.layer4[0].conv1.attn.proj.weight.grad
    assert grad.isfinite().all() and grad.any()
    with torch.no_grad():
        answer, = model.eval()([torch.rand(3, 96, 128)])
    assert answer['boxes'].shape[1] == 4 and len(answer['boxes']) == len(answer['scores'])
