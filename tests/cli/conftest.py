"""A checkpoint that the commands find, and the certainty that they check before they work."""
import pytest
import timm

from fake_weights import NAME_TAG, registered, save_checkpoint


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Folder of a small checkpoint, whose tag is registered and found."""
    folder = tmp_path_factory.mktemp('weights') / NAME_TAG
    with registered(save_checkpoint(folder)), pytest.MonkeyPatch.context() as patch:
        patch.setenv('AA_MODELS_WEIGHTS', str(folder.parent))
        yield folder


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: pytest.fail('a model was built before the check'))
