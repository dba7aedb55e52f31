"""torch.hub: exactly the models of this package, each documented, each the model that timm makes."""
import subprocess
import sys

import pytest
import timm
import torch

from aa_models.zoo import own_models
from fake_weights import NAME, NAME_TAG, logits, registered, save_checkpoint
from repository import ROOT


@pytest.fixture
def github(tmp_path):
    """Name of a repository that torch.hub takes for the downloaded copy of this checkout."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / 'owner_aa-models_main').symlink_to(ROOT)
    yield 'owner/aa-models:main'
    torch.hub.set_dir(before)


def hub_load(name, **kwargs):
    return torch.hub.load(str(ROOT), name, source='local', **kwargs)


def test_list_and_help(github):
    assert sorted(torch.hub.list(github, trust_repo=True, verbose=False)) == sorted(own_models())
    for name in own_models():
        assert torch.hub.help(github, name, trust_repo=True) == timm.model_entrypoint(name).__doc__ != ''


@pytest.mark.parametrize('name', own_models())
def test_entry_point(name, monkeypatch):
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: (args, kwargs))
    assert hub_load(name) == ((name,), dict(pretrained=False))
    assert hub_load(name, pretrained=True, dk=8) == ((name,), dict(pretrained=True, dk=8))


def test_pretrained(github, tmp_path, monkeypatch):
    monkeypatch.setenv('AA_MODELS_WEIGHTS', str(tmp_path))
    with registered(save_checkpoint(tmp_path / NAME_TAG)):
        expected = logits(timm.create_model(NAME, pretrained=True))
        assert torch.equal(logits(hub_load(NAME, pretrained=True)), expected)
        from_github = torch.hub.load(github, NAME, pretrained=True, trust_repo=True, verbose=False)
        assert torch.equal(logits(from_github), expected)


def test_works_where_the_package_is_not_installed(tmp_path):
    """The checkout is in the path only while torch.hub makes the model; using it must not need an import from there."""
    script = (
        'import sys, torch\n'
        f'sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]  # of an editable installation\n'
        f'model = torch.hub.load({str(ROOT)!r}, {NAME!r}, source="local").eval()\n'
        f'assert {str(ROOT)!r} not in sys.path\n'
        'print(sys.modules[type(model).__module__].__file__, model(torch.zeros(1, 3, 32, 32)).shape[1])\n'
    )
    result = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(ROOT / 'aa_models/models/simplecnn.py'), '100']

