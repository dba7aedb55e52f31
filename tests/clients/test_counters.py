"""torchinfo, ptflops and fvcore count as this package does: parameters exactly, products of convolutions at least."""
import pytest
import timm
import torch
from torch import nn

import aa_models  # noqa: F401, registers the models
from aa_models.analysis.macs import count_macs, count_macs_by_module

pytestmark = pytest.mark.clients
NAMES = ['aa_simplecnn', 'laa_simplecnn', 'aa_resnet18']


def counted(name):
    """The network, its parameters, and the multiply-adds of all and of its convolutions and linear layers alone."""
    model = timm.create_model(name).eval()
    size = (3, 64, 64)
    by_module = count_macs_by_module(model, size)
    known = sum(by_module.get(n, 0) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return model, sum(p.numel() for p in model.parameters()), count_macs(model, size), known


@pytest.mark.parametrize('name', NAMES)
def test_torchinfo(name):
    torchinfo = pytest.importorskip('torchinfo')
    model, parameters, total, known = counted(name)
    # it takes the tables of relative positions and the convolutions for all there is
    summary = torchinfo.summary(model, (1, 3, 64, 64), verbose=0)
    assert summary.total_params == parameters
    assert known <= summary.total_mult_adds <= total


@pytest.mark.parametrize('name', NAMES)
def test_ptflops(name):
    ptflops = pytest.importorskip('ptflops')
    model, parameters, total, known = counted(name)
    for backend in ('pytorch', 'aten'):
        macs, params = ptflops.get_model_complexity_info(
            model, (3, 64, 64), as_strings=False, print_per_layer_stat=False, verbose=False, backend=backend)
        assert params == parameters
        assert known <= macs <= 1.1 * total, backend


@pytest.mark.parametrize('name', NAMES)
def test_fvcore(name):
    fvcore = pytest.importorskip('fvcore.nn')
    model, parameters, total, known = counted(name)
    count = fvcore.FlopCountAnalysis(model, torch.randn(1, 3, 64, 64)).unsupported_ops_warnings(False)
    # it hooks every module, and a hook on the attention's dropout has all weights made, those of linear attention too
    assert known <= count.total() and (name.startswith('laa') or count.total() <= 1.1 * total)
    assert fvcore.parameter_count(model)[''] == parameters
