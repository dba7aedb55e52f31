"""The blockwise operator: the explicit numbers, however the map is cut into blocks, and a citizen of every tracer."""
import itertools

import pytest
import torch

from aa_models.layers import AugmentedConv2d, attention_blocks, block_layout, softmax_attention
from aa_models.layers.blockwise import blockwise_attention
from aa_models.layers.softmax_attention import attention_weights, choose_backend
from torch_faults import skip_where_compiling_is_called_exporting

SHAPES = [  # batch, heads, H, W, dim_k, dim_v
    (2, 2, 5, 7, 4, 3), (1, 3, 7, 2, 3, 1), (2, 1, 6, 1, 3, 2), (1, 2, 1, 9, 4, 4), (1, 1, 1, 1, 2, 3),
    (3, 2, 4, 4, 8, 8)]


def inputs(shape, rows=True, columns=True, dtype=torch.float64):
    B, num_heads, H, W, dim_k, dim_v = shape
    sizes = [(B, num_heads, H, W, dim_k)] * 2 + [(B, num_heads, H, W, dim_v)]
    sizes += [(2 * H - 1, dim_k) if rows else None, (2 * W - 1, dim_k) if columns else None]
    return [None if size is None else torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def explicit(q, k, v, rel_h, rel_w, scale, causal):
    return (attention_weights(q * scale, k, rel_h, rel_w, causal) @ v.flatten(2, 3)).view_as(v)


def with_gradients(function, tensors, *args, grad):
    out = function(*tensors, *args)
    wanted = [t for t in tensors if t is not None]
    return [out, *torch.autograd.grad(out, wanted, grad.to(out.dtype))]


@pytest.mark.parametrize('block', [1, 30, 100, 2 ** 19], ids='block{}'.format)
@pytest.mark.parametrize('shape,rows,columns,causal', [
    *((shape, *tables, False) for shape in SHAPES for tables in itertools.product((True, False), repeat=2)),
    ((2, 2, 1, 11, 4, 3), False, True, True), ((2, 2, 1, 11, 4, 3), False, False, True)])
def test_equals_explicit_attention(monkeypatch, shape, block, rows, columns, causal):
    monkeypatch.setattr(block_layout, '_BLOCK', block)
    tensors, grad = inputs(shape, rows, columns), torch.randn(*shape[:4], shape[5], dtype=torch.float64)
    expected = with_gradients(explicit, tensors, 0.3, causal, grad=grad)
    torch.testing.assert_close(with_gradients(blockwise_attention, tensors, 0.3, causal, grad=grad), expected)


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize('channels_last', [False, True])
def test_other_dtypes_and_strides(without_cpp, dtype, tolerance, channels_last):
    """As a layer has them: q, k and v are slices of one map, the tables stay in float32."""
    qkv = torch.randn(2, 2 * 20, 6, 5).to(dtype)
    if channels_last:
        qkv = qkv.contiguous(memory_format=torch.channels_last)
    parts = [t.unflatten(1, [2, -1]).permute(0, 1, 3, 4, 2) for t in qkv.split([16, 16, 8], dim=1)]
    tables = [torch.randn(11, 8), torch.randn(9, 8)]
    tensors = [t.detach().requires_grad_() for t in parts + tables]
    grad = torch.randn(2, 2, 6, 5, 4).to(dtype)
    found = with_gradients(blockwise_attention, tensors, 0.35, False, grad=grad)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = with_gradients(explicit, exact, 0.35, False, grad=grad)
    assert [t.dtype for t in found] == [dtype] * 4 + [torch.float32] * 2
    for a, b in zip(found, expected):
        scale = b.abs().max().item()
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=tolerance)


def test_bfloat16_is_multiplied_only_where_the_cpu_can(without_cpp, monkeypatch):
    """Elsewhere the results are those of the same numbers in float32, rounded once."""
    tensors = [t.to(torch.bfloat16).detach().requires_grad_() for t in inputs((2, 2, 6, 5, 8, 4))]
    grad = torch.randn(2, 2, 6, 5, 4).to(torch.bfloat16)
    monkeypatch.setattr(attention_blocks, 'multiplies', lambda dtype: False)
    found = with_gradients(blockwise_attention, tensors, 0.35, False, grad=grad)
    floats = [t.detach().float().requires_grad_() for t in tensors]
    expected = with_gradients(blockwise_attention, floats, 0.35, False, grad=grad)
    assert all(torch.equal(a, b.to(torch.bfloat16)) for a, b in zip(found, expected))
    monkeypatch.setattr(attention_blocks, 'multiplies', lambda dtype: True)
    rounded = with_gradients(blockwise_attention, tensors, 0.35, False, grad=grad)
    assert not torch.equal(rounded[2], found[2])


def test_is_an_operator_by_torchs_own_checks():
    for shape, tables, causal in (((2, 2, 3, 4, 4, 3), (True, True), False), ((1, 2, 1, 5, 4, 4), (False, True), True)):
        tensors = inputs(shape, *tables, dtype=torch.float32)
        torch.library.opcheck(blockwise_attention, (*tensors, 0.5, causal))


def test_one_node_when_compiled(fresh_compiler):
    skip_where_compiling_is_called_exporting()
    graphs = []
    layer = AugmentedConv2d(8, 16, 3, padding=1, dk=8, dv=8, num_heads=2, feat_size=6).eval()
    compiled = torch.compile(layer, backend=lambda graph, example: graphs.append(graph) or graph, fullgraph=True)
    compiled(torch.randn(1, 8, 6, 6))
    names = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum('blockwise_attention' in name for name in names) == 1 and not any('bmm' in name for name in names)


def test_blockwise_on_cpus_alone():
    assert choose_backend('cpu') == 'blockwise'
    for device in ('cuda', 'mps', 'xpu', 'meta'):
        assert choose_backend(device) == 'folded'


def test_the_layer_asks_for_its_device(monkeypatch):
    """What runs on a device that is not there shows on meta: one fused call, no operator of ours."""
    called = []
    for name in ('blockwise_attention', 'fused_attention', 'attention_weights'):
        function = getattr(softmax_attention, name)
        monkeypatch.setattr(
            softmax_attention, name, lambda *args, name=name, function=function: called.append(name) or function(*args))
    for device, expected in (('meta', 'fused_attention'), ('cpu', 'blockwise_attention')):
        layer = AugmentedConv2d(8, 16, 3, padding=1, dk=8, dv=8, num_heads=2, feat_size=6, device=device)
        called.clear()
        layer(torch.randn(2, 8, 6, 6, device=device))
        assert called == [expected]


def test_exported_programs_hold_no_operator_of_ours():
    layer = AugmentedConv2d(8, 16, 3, padding=1, dk=8, dv=8, num_heads=2, feat_size=6).eval()
    x = torch.randn(1, 8, 6, 6)
    program = torch.export.export(layer, (x,))
    assert not any('aa_models' in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))
    assert 'aa_models::' not in str(torch.jit.trace(layer, x).inlined_graph)
