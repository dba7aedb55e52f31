"""fastai: a learner by the name of the network."""
import pytest
import timm
import torch
from PIL import Image

import aa_models  # noqa: F401, registers the models

vision = pytest.importorskip('fastai.vision.all')
pytestmark = pytest.mark.clients


@pytest.fixture
def pictures(tmp_path):
    for kind, colour in dict(blue=(20, 40, 200), red=(200, 40, 20)).items():
        (tmp_path / kind).mkdir()
        for i in range(6):
            Image.new('RGB', (32, 32), tuple(c + 5 * i for c in colour)).save(tmp_path / kind / f'{i}.png')
    return tmp_path


def test_vision_learner(pictures):
    torch.manual_seed(0)
    loaders = vision.ImageDataLoaders.from_folder(pictures, valid_pct=0.25, seed=0, bs=4, num_workers=0, device='cpu')
    learner = vision.vision_learner(loaders, 'aa_simplecnn', pretrained=True, metrics=vision.accuracy)
    body, x = learner.model[0].eval(), torch.randn(2, 3, 32, 32)
    own = timm.create_model('aa_simplecnn', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(body(x), own.forward_features(x))
        assert learner.model.eval()(x).shape == (2, 2)
    with learner.no_bar(), learner.no_logging():
        before = learner.validate()[0]
        learner.fit_one_cycle(3, 1e-2)
        after, accuracy = learner.validate()
    assert after < before and accuracy == 1
