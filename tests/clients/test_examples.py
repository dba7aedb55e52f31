"""The worked examples that need a client, each at a small size."""
import re

import pytest
import timm
import torch
from PIL import Image

from repository import ROOT

pytestmark = pytest.mark.clients


def masks_of(count):
    from aa_models.examples import segmentation

    return segmentation.pictures(count, seed=0)[1]


def test_segmentation(capsys):
    pytest.importorskip('segmentation_models_pytorch')
    from aa_models.examples import segmentation

    images, masks = segmentation.pictures(9, seed=0)
    assert images.shape == (9, 3, 48, 96) and masks.shape == (9, 48, 96) and masks.unique().tolist() == [0, 1]
    inside = torch.stack([image[:, mask == 1].mean(1) - image[:, mask == 0].mean(1)
                          for image, mask in zip(images, masks)])
    assert (inside.abs().amax(1) > 0.2).all()  # a figure has another colour than what is around it

    class Knows:
        """Answers with the true masks but for every second picture, where it finds nothing."""
        def __call__(self, x):
            masks = segmentation.pictures(16, seed=0)[1] * (torch.arange(16) % 2).view(16, 1, 1)
            return torch.nn.functional.one_hot(masks, 2).movedim(-1, 1)

    figure, found = masks_of(16), masks_of(16)[1::2]
    expected = found.sum() / figure.sum()
    background = (figure == 0).sum() / ((figure == 0).sum() + figure[::2].sum())
    assert segmentation.mean_iou(Knows(), 16) == pytest.approx(float((expected + background) / 2))
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

    explanation.main([str(ROOT / 'tests' / 'photographs' / 'espresso.jpg'), str(tmp_path / 'out.png')])
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
