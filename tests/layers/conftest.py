"""What the tests of several layers share."""
import pytest
from timm.layers import set_fused_attn


@pytest.fixture
def without_cpp(monkeypatch):
    """Attention on CPUs by PyTorch's calls, as on a machine without a compiler."""
    monkeypatch.setenv('AA_MODELS_CPP', '0')


@pytest.fixture(params=[True, False], ids=['fused', 'explicit'])
def fused(request):
    set_fused_attn(request.param)
    yield request.param
    set_fused_attn(True)
