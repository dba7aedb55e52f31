"""Pictures that the tests of training share."""
import pytest
import timm
import torch

from our_models import uneven
from training_runs import make_pictures

TEACHER = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), input_size=(3, 20, 28))


@pytest.fixture(scope='session')
def teacher(tmp_path_factory):
    """Folder of a network of the pictures' three classes that wants another size, mean and deviation than students."""
    torch.manual_seed(5)
    model = uneven(timm.create_model('simplecnn', num_classes=3, channels=(8, 8, 16, 16, 24)))
    folder = tmp_path_factory.mktemp('teacher') / 'net'
    names = dict(label_names=('red', 'green', 'blue'))
    timm.models.save_for_hf(model, folder, safe_serialization=True, data_config=TEACHER, model_config=names)
    return folder


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('data') / 'pictures')  # three batches an epoch
