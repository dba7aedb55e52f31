"""The worked examples that need a client, each at a small size."""
import re

import pytest
import timm
import torch
from PIL import Image

from repository import ROOT

pytestmark = pytest.mark.clients


def test_segmentation(capsys):
    pytest.importorskip('segmentation_models_pytorch')
    from aa_models.examples import segmentation

    images, masks = segmentation.pictures(9, seed=0)
    assert images.shape == (9, 3, 64, 128) and masks.shape == (9, 64, 128)
    assert [int(mask.max()) for mask in masks] == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    torch.manual_seed(0)
    assert segmentation.mean_iou(lambda x: torch.randn(len(x), 9, 64, 128), 16) < 0.06  # guesses

    class Knows:
        """Answers with the true masks."""
        def __init__(self):
            self.rest = iter(segmentation.pictures(16, seed=0)[1].split(16))

        def __call__(self, x):
            return torch.nn.functional.one_hot(next(self.rest), 9).movedim(-1, 1)

    assert segmentation.mean_iou(Knows(), 16) == 1
    segmentation.main(['--steps', '2'])
    assert re.findall(r'tu-(\w+): mean IoU [\d.]+ %', capsys.readouterr().out) == ['resnet18', 'aa_resnet18']


def test_detector(capsys):
    from aa_models.examples import detector

    images, targets = detector.pictures(3, seed=0)
    for target in targets:
        left, top, right, bottom = target['boxes'][0]
        assert 0 <= left < right <= 160 and 0 <= top < bottom <= 80 and images[0].shape == (3, 80, 160)
    torch.manual_seed(0)
    model = detector.make_detector()
    losses = detector.fine_tune(model, 8, batch=4)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert 0 <= detector.overlap(model, 4) <= 1
    detector.main(['--steps', '1'])
    assert re.search(r'loss [\d.]+, at the end [\d.]+; boxes overlap by \d+ %', capsys.readouterr().out)


def test_explanation(tmp_path):
    pytest.importorskip('pytorch_grad_cam')
    from aa_models.examples import explanation

    explanation.main(str(ROOT / 'tests' / 'photographs' / 'espresso.jpg'), str(tmp_path / 'out.png'))
    with Image.open(tmp_path / 'out.png') as picture:
        assert min(picture.size) > 200
    model = timm.create_model('aa_resnet18', pretrained=True).eval()
    x = torch.randn(1, 3, 96, 96)
    one, other = (explanation.evidence(model, x, target, model.layer4) for target in (3, 50))
    assert one.shape == (96, 96) and one.max() <= 1 and not torch.allclose(one, other)  # of the class asked for
    with Image.open(ROOT / 'tests' / 'photographs' / 'espresso.jpg') as picture:
        figure = explanation.explain('aa_resnet18.tiny_in', picture)
    assert 'espresso' in figure._suptitle.get_text()
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes if axes.get_title()]
    assert titles == ['picture', 'Grad-CAM, layer4', 'attention, layer2.0.conv1']
