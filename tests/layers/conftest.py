"""What the tests of several layers share."""
import pytest
from timm.layers import set_fused_attn


@pytest.fixture(params=[True, False], ids=['fused', 'explicit'])
def fused(request):
    set_fused_attn(request.param)
    yield request.param
    set_fused_attn(True)
