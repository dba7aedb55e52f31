"""torchao: int8 weights of linear layers, and whole networks in int8 by its export flow."""
import pytest
import timm
import torch
from PIL import Image

import aa_models  # noqa: F401, registers the models
from repository import ROOT

quantization = pytest.importorskip('torchao.quantization')
pytestmark = pytest.mark.clients


@pytest.fixture(scope='module')
def photographs():
    """Twelve of them, as `aa_resnet18.tiny_in` takes them."""
    config = timm.data.resolve_data_config(model=timm.create_model('aa_resnet18.tiny_in', device='meta'))
    transform = timm.data.create_transform(**config)
    paths = sorted((ROOT / 'tests' / 'photographs').glob('*.jpg'))
    return torch.stack([transform(Image.open(path).convert('RGB')) for path in paths])


@torch.no_grad()
def test_int8_weights(photographs):
    model = timm.create_model('aa_resnet18.tiny_in', pretrained=True).eval()
    expected = model(photographs)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.fc.weight).__name__ != 'Parameter' or model.fc.weight.dtype == torch.int8
    found = model(photographs)
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9


@torch.no_grad()
def test_int8_network(photographs):
    """Convolutions too, the attention's among them: calibrated on photographs, it answers as before."""
    pt2e = pytest.importorskip('torchao.quantization.pt2e.quantize_pt2e')
    x86 = pytest.importorskip('torchao.quantization.pt2e.quantizer.x86_inductor_quantizer')
    model = timm.create_model('aa_resnet18.tiny_in', pretrained=True).eval()
    expected = model(photographs)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = pt2e.prepare_pt2e(torch.export.export(model, (photographs,)).module(), quantizer)
    prepared(photographs)
    converted = pt2e.convert_pt2e(prepared)
    names = [node.name for node in converted.graph.nodes if 'quantize_per' in node.name]
    assert len(names) > 40
    found = converted(photographs)
    assert (found - expected).norm() < 0.2 * expected.norm()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.75
