"""The Triton kernels in Triton's interpreter, on CPU tensors, against the definitions in float64.

`test_triton_attention.py` runs this in a process with TRITON_INTERPRET=1, which must be set before triton is imported.
"""
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton.language as tl
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from triton.runtime import interpreter

import reference
from aa_models.layers import AugmentedConv1d, AugmentedConv2d, softmax_attention, triton_attention, triton_trial
from aa_models.layers.explicit import attention_weights
from daily import daily

# B, num_heads, H, W, dim_k, dim_v; rows, columns; causal; dtype
NAMED = [
    ((1, 2, 5, 7, 20, 4), True, True, False, torch.float32),  # a part of one tile
    ((1, 1, 3, 37, 20, 5), True, True, False, torch.float32),  # tiles side by side, blocks of queries that end in a row
    ((1, 1, 1, 70, 8, 4), False, True, True, torch.float32),  # no query of a block sees the keys of a later tile
    ((1, 1, 9, 9, 20, 4), True, True, False, torch.float16),
    ((1, 1, 9, 9, 20, 4), True, True, False, torch.bfloat16),
    ((1, 1, 6, 5, 40, 40), True, True, False, torch.bfloat16),  # fewer queries to a block
    ((1, 1, 6, 5, 7, 3), True, False, False, torch.float32), ((1, 1, 6, 5, 7, 3), False, True, False, torch.float32),
    ((1, 1, 1, 1, 1, 1), True, True, False, torch.float32), ((1, 1, 70, 1, 3, 2), True, True, False, torch.float32)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def drawn(seed):
    draw = random.Random(seed)
    dtype = draw.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
    dim_k, dim_v = (draw.randint(1, 32 if dtype == torch.float32 else 70) for _ in range(2))
    shape = draw.randint(1, 2), draw.randint(1, 2)
    if draw.random() < 0.3:
        return (*shape, 1, draw.randint(1, 90), dim_k, dim_v), False, True, draw.random() < 0.5, dtype
    H = draw.randint(1, 12)
    tables = draw.choice([(True, True), (True, True), (True, False), (False, True)])
    return (*shape, H, draw.randint(1, max(12, 90 // H)), dim_k, dim_v), *tables, False, dtype


CASES = NAMED + [drawn(seed) for seed in range(40)]


@pytest.fixture(autouse=True, scope='module')
def bfloat16_products():
    """The interpreter multiplies the bits of bfloat16 as whole numbers (it has no such products, as its manual says).

    As float32 their products are exact, as those of matrix units are.
    """
    dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, *args):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar.is_bf16() else x for x in (a, b))
        return dot(self, a, b, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, 'create_dot', create_dot)
        yield


@pytest.fixture
def within_bounds(monkeypatch):
    """Every address that is read or written lies in a tensor that the kernel was given."""
    bounds = []

    def launch(self, name, heads, *tensors, original=triton_attention._Launch.__call__):
        bounds[:] = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors if t is not None]
        original(self, name, heads, *tensors)

    def checked(method, place):
        def access(self, pointers, *args):
            addresses = pointers.data[args[place].data]
            begins, ends = np.array(bounds, dtype=addresses.dtype).T[:, :, None]
            assert ((begins <= addresses) & (addresses < ends)).any(0).all()
            return method(self, pointers, *args)
        return access

    monkeypatch.setattr(triton_attention._Launch, '__call__', launch)
    for name, place in (('create_masked_load', 0), ('create_masked_store', 1)):  # of the mask among what follows
        method = getattr(interpreter.InterpreterBuilder, name)
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, checked(method, place))


def inputs(shape, rows, columns, dtype):
    B, num_heads, H, W, dim_k, dim_v = shape
    q, k, v, grad = (torch.randn(B, num_heads, H, W, dim).to(dtype) for dim in (dim_k, dim_k, dim_v, dim_v))
    tables = [torch.randn(2 * n - 1, dim_k) if there else None for n, there in ((H, rows), (W, columns))]
    return [q, k, v, *tables], grad


def with_gradients(function, tensors, grad, *args):
    tensors = [t if t is None else t.detach().clone().requires_grad_() for t in tensors]
    out = function(*tensors, *args)
    return [out.detach(), *torch.autograd.grad(out, [t for t in tensors if t is not None], grad.to(out.dtype))]


def kernels(*args):
    return triton_attention.triton_attention(*args)[0]


def definition(q, k, v, rel_h, rel_w, scale, causal):
    assert scale == q.shape[-1] ** -0.5
    attn = SimpleNamespace(rel_h=rel_h, rel_w=rel_w, causal=causal)
    weights = reference.softmax_weights(attn, q.flatten(2, 3), k.flatten(2, 3), *q.shape[2:4])
    return (weights @ v.flatten(2, 3)).view_as(v)


def explicit(q, k, v, rel_h, rel_w, scale, causal):
    return (attention_weights(q, k, rel_h, rel_w, causal, scale) @ v.flatten(2, 3)).view_as(v)


def assert_close(found, exact, dtype):
    for a, b in zip(found, exact, strict=True):
        size = b.abs().max().item()
        size = size if size > 1e-9 else 1.  # where all weights' changes cancel, as those by an axis of one position
        torch.testing.assert_close(a.double() / size, b / size, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize('case', daily(CASES, *NAMED[:5]), ids=str)
def test_equals_the_definition(within_bounds, case):
    shape, rows, columns, causal, dtype = case
    tensors, grad = inputs(shape, rows, columns, dtype)
    args = grad, shape[4] ** -0.5, causal
    found = with_gradients(kernels, tensors, *args)
    assert [t.dtype for t in found] == [dtype] * 4 + [torch.float32] * (rows + columns)
    doubles = [t if t is None else t.double() for t in tensors]
    exact = with_gradients(explicit, doubles, *args)
    torch.testing.assert_close(definition(*doubles, *args[1:]), exact[0])
    assert_close(found, exact, dtype)


@pytest.mark.parametrize('dtype', daily([torch.float16, torch.bfloat16], torch.float16))
def test_large_logits_in_half_precision(dtype):
    """Beyond 65504, where float16 ends: the right key wins, wherever it wins clearly."""
    tensors, grad = inputs((1, 2, 5, 6, 20, 4), True, True, dtype)
    tensors = [*(t * 100 for t in tensors[:2]), *tensors[2:]]
    args = grad, 20 ** -0.5, False
    found = with_gradients(kernels, tensors, *args)
    q, k, v, rel_h, rel_w = (t.double() for t in tensors)
    assert (q.flatten(2, 3) @ k.flatten(2, 3).mT).abs().max() > 65504
    weights = attention_weights(q, k, rel_h, rel_w, scale=args[1])
    clear = weights.amax(-1) > 0.999
    assert clear.float().mean() > 0.8
    assert_close([found[0].flatten(2, 3)[clear]], [(weights @ v.flatten(2, 3))[clear]], dtype)
    assert all(t.isfinite().all() for t in found)


def test_some_heads_at_a_time(monkeypatch):
    tensors, grad = inputs((3, 1, 4, 5, 7, 3), True, True, torch.float32)
    args = grad, 0.4, False
    whole, again = (with_gradients(kernels, tensors, *args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(whole, again))
    monkeypatch.setattr(triton_attention, '_NUMBERS', 2 * 20 * (7 + 9))  # two heads, then one
    torch.testing.assert_close(with_gradients(kernels, tensors, *args), whole)


@pytest.fixture
def chosen(monkeypatch):
    """Let layers on the CPU take the backend that is set."""
    def choose(backend):
        monkeypatch.setattr(softmax_attention, 'choose_backend', lambda *args: backend)
    return choose


def layer_and_input(kind):
    if kind == 'sequence':
        return AugmentedConv1d(4, 12, 3, dk=8, dv=4, num_heads=2, feat_size=9, causal=True), torch.randn(2, 4, 11)
    layer = AugmentedConv2d(4, 12, 3, padding=1, dk=8, dv=4, num_heads=2, feat_size=(4, 6))
    x = torch.randn(2, 4, 5, 6)
    return layer, x.contiguous(memory_format=torch.channels_last) if kind == 'channels last' else x


def all_gradients(layer, x, create_graph=False):
    x = x.detach().requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()], create_graph=create_graph)
    if create_graph:  # as of a gradient penalty
        return torch.autograd.grad(sum(g.square().sum() for g in grads), [x, *layer.parameters()], allow_unused=True)
    return y, *grads


@pytest.mark.parametrize('kind', daily(['map', 'channels last', 'sequence'], 'map', 'sequence'))
def test_layer(chosen, kind):
    """Also at a size that its tables are not made for; first and second derivatives."""
    layer, x = layer_and_input(kind)
    for create_graph in (False, True):
        results = []
        for backend in ('triton', 'explicit'):
            chosen(backend)
            results.append(torch.cat([t.flatten() for t in all_gradients(layer, x, create_graph)]))
        torch.testing.assert_close(*results, rtol=0, atol=1e-5 * results[1].abs().max().item())


@pytest.mark.slow
def test_layer_under_autocast(chosen):
    layer, x = layer_and_input('map')
    chosen('triton')
    exact = all_gradients(layer, x)
    with torch.autocast('cpu', torch.bfloat16):
        found = all_gradients(layer, x)
    assert [t.dtype for t in found] == [torch.bfloat16] + [torch.float32] * (len(found) - 1)
    for a, b in zip(found, exact):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=0.05 * b.abs().max().item())


@pytest.mark.slow
def test_layer_compiled(chosen, fresh_compiler):
    """One operator forward, one backward."""
    chosen('triton')
    layer, x = layer_and_input('map')
    graphs = []
    compiled = torch.compile(layer, fullgraph=True, backend=aot_autograd(
        fw_compiler=lambda graph, _: graphs.append(graph) or make_boxed_func(graph.forward)))
    torch.testing.assert_close(all_gradients(compiled, x), all_gradients(layer, x))
    names = [[str(node.target) for node in graph.graph.nodes if 'triton' in str(node.target)] for graph in graphs]
    assert names == [['aa_models.triton_attention.default'], ['aa_models.triton_attention_backward.default']]


@pytest.mark.slow
@pytest.mark.parametrize('shape,tables,causal', [
    ((2, 2, 3, 4, 4, 3), (True, True), False), ((1, 2, 1, 5, 4, 4), (False, True), True)])
def test_is_an_operator_by_torchs_own_checks(shape, tables, causal):
    tensors, _ = inputs(shape, *tables, torch.float32)
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    torch.library.opcheck(triton_attention.triton_attention, (*tensors, 0.5, causal))


TRIALS = [
    triton_trial.Case(torch.device('cpu'), dtype, 20, 4, columns, rows, True, causal)
    for dtype, columns, rows, causal in (
        (torch.float32, 8, True, False), (torch.float32, 8, False, True), (torch.float32, 16, False, False),
        (torch.float32, 32, False, True), (torch.float16, 16, True, False), (torch.bfloat16, 32, True, False))]


@pytest.mark.parametrize('case', daily(TRIALS, TRIALS[1]), ids=str)
def test_trial(case):
    assert triton_trial._fault(case) == ''
