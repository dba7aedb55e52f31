"""torchvision's RetinaNet on an augmented ResNet: it learns from a photograph at 640 px and answers in its pixels."""
import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms.functional import to_tensor

import aa_models  # noqa: F401, registers the models

WIDTH = 64  # channels of the pyramid; the heads' cost grows with its square


def make_detector(**kwargs):
    body = timm.create_model('aa_resnet50', features_only=True, out_indices=(2, 3, 4), **kwargs)
    layers = {name: str(i) for i, name in enumerate(body.feature_info.module_name())}
    backbone = BackboneWithFPN(body, layers, body.feature_info.channels(), WIDTH, LastLevelP6P7(WIDTH, WIDTH))
    return body, RetinaNet(backbone, num_classes=2, min_size=640, max_size=640, score_thresh=0., detections_per_img=50)


@torch.no_grad()
def test_the_pyramid_stands_on_the_features():
    """torchvision walks through the children of timm's feature network; they are the same features."""
    body, detector = make_detector()
    body.eval()
    x = torch.randn(1, 3, 96, 128)
    features = detector.backbone.body(x)
    assert [(name, *f.shape) for name, f in features.items()] == [
        ('0', 1, 512, 12, 16), ('1', 1, 1024, 6, 8), ('2', 1, 2048, 3, 4)]
    assert all(map(torch.equal, features.values(), body(x)))


@pytest.mark.slow
def test_a_step_and_an_answer_at_640_px():
    """On the portrait that comes with matplotlib, (3, 600, 512), and the head in it."""
    with Image.open(get_sample_data('grace_hopper.jpg', asfileobj=False)) as picture:
        image = to_tensor(picture.convert('RGB'))
    target = dict(boxes=torch.tensor([[152., 22., 375., 335.]]), labels=torch.tensor([1]))
    # blocks that start as the identity would have no gradient in their first layers
    _, detector = make_detector(img_size=640, zero_init_last=False)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    losses = detector([image], [target])
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert any('layer4.2.conv2.attn.rel_w' in name for name, _ in detector.named_parameters())
    optimizer.step()
    with torch.no_grad():
        after = detector([image], [target])
    assert set(losses) == {'classification', 'bbox_regression'}
    assert sum(after.values()) < sum(losses.values())

    detector.eval()
    with torch.inference_mode():
        found, = detector([image])
    height, width = image.shape[1:]
    boxes, scores = found['boxes'], found['scores']
    assert len(boxes) == 50 and (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all() and boxes[:, 2].max() > width / 2 and boxes[:, 3].max() > height / 2
    assert (scores[:-1] >= scores[1:]).all() and (scores > 0).all() and (scores < 1).all()
