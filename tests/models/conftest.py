"""A checkpoint of random weights and the places where the weights of a model may lie."""
import huggingface_hub.constants
import pytest
import timm
from safetensors.torch import load_file

from aa_models.models import weight_files
from fake_weights import INPUT_SIZE, NAME, NAME_TAG, NUM_CLASSES, logits, put, registered, save_checkpoint
from hub_server import HubServer, send_client_to


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Folder of the test tag's checkpoint, the tag registered."""
    folder = tmp_path_factory.mktemp('checkpoint') / NAME_TAG
    with registered(save_checkpoint(folder)):
        yield folder


@pytest.fixture(scope='module')
def expected(checkpoint):
    """Logits of the checkpoint, loaded without timm and without our code."""
    model = timm.create_model(NAME, num_classes=NUM_CLASSES, img_size=INPUT_SIZE[1:])
    model.load_state_dict(load_file(checkpoint / 'model.safetensors'))
    return logits(model)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, which the client talks to."""
    with HubServer(tmp_path / 'hub') as hub:
        send_client_to(hub, tmp_path / 'cache', monkeypatch)
        yield hub


@pytest.fixture
def places(hub, tmp_path, monkeypatch):
    """The five places, empty: local folders and our organisation's on the Hub."""
    folders = {place: tmp_path / folder for place, folder in dict(
        variable='variable', current='current/weights', checkout='checkout/weights',
        package='checkout/aa_models/weights', hub='hub/aa-models',
    ).items()}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (tmp_path / 'checkout' / 'pyproject.toml').touch()
    monkeypatch.setattr(weight_files, '_PACKAGE', folders['package'].parent)
    monkeypatch.chdir(folders['current'].parent)
    monkeypatch.setenv('AA_MODELS_WEIGHTS', str(folders['variable']))
    return folders


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


@pytest.fixture
def found(places, checkpoint):
    put(checkpoint, places['checkout'])
