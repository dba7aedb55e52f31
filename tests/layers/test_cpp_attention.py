"""The C++ kernel: the explicit numbers for every shape and set of instructions, and machines that cannot have it."""
import functools
import random
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

from aa_models.layers import AugmentedConv2d, cpp_attention, cpp_build
from aa_models.layers.blockwise import blockwise_attention, blockwise_attention_backward
from aa_models.layers.cpp_attention import CppAttention, kernel_for
from aa_models.layers.explicit import attention_gradients, attention_weights

SOURCE = Path(cpp_attention.__file__).with_suffix('.cpp')
CAPABILITIES = ('AVX2', 'AVX512')
HERE = torch.backends.cpu.get_cpu_capability()
needs_compiler = pytest.mark.skipif(
    cpp_build._compiler() is None or HERE not in CAPABILITIES, reason='needs a C++ compiler, and AVX2 or AVX-512')


@pytest.fixture(scope='module', params=CAPABILITIES)
def kernel(request, tmp_path_factory):
    """Compiled anew, for each set of instructions that this CPU has."""
    if CAPABILITIES.index(request.param) > CAPABILITIES.index(HERE):
        pytest.skip(f'the CPU has no {request.param}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        patch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: request.param)
        return CppAttention(cpp_build.load_library(SOURCE))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A machine that has compiled nothing yet; its cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('AA_MODELS_CPP', raising=False)
    monkeypatch.setattr(cpp_attention, '_tried_kernel', functools.cache(cpp_attention._tried_kernel.__wrapped__))
    return tmp_path / 'aa_models'


def example(shape, rows, columns, dtype, channels_last, factor=1.):
    """As a layer has them: the gradient, and q, k and v that are slices of one map, then the tables."""
    B, num_heads, H, W, dim_k, dim_v = shape
    qkv = torch.randn(B, num_heads * (2 * dim_k + dim_v), H, W) * factor
    grad = torch.randn(B, num_heads * dim_v, H, W)
    if channels_last:
        qkv, grad = (t.contiguous(memory_format=torch.channels_last) for t in (qkv, grad))
    parts = [*qkv.to(dtype).split([num_heads * dim for dim in (dim_k, dim_k, dim_v)], dim=1), grad.to(dtype)]
    q, k, v, grad = (t.unflatten(1, [num_heads, -1]).permute(0, 1, 3, 4, 2) for t in parts)
    tables = [torch.randn(2 * size - 1, dim_k) if there else None for size, there in ((H, rows), (W, columns))]
    return grad, q, k, v, *tables


def exact(grad, q, k, v, rel_h, rel_w, scale, causal):
    tensors = [None if t is None else t.double().requires_grad_() for t in (q, k, v, rel_h, rel_w)]
    q, k, v, rel_h, rel_w = tensors
    out = (attention_weights(q, k, rel_h, rel_w, causal, scale) @ v.flatten(2, 3)).view_as(v)
    return [out, *attention_gradients(grad.double(), *tensors, scale=scale, causal=causal)]


def compare(found, expected, tolerance):
    for a, b in zip(found, expected):
        if b is None:
            assert a.numel() == 0
        else:
            largest = b.abs().max().clamp_min(1e-30)
            torch.testing.assert_close(a.double() / largest, b / largest, rtol=0, atol=tolerance)


@needs_compiler
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 3e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize('seed', range(40))
def test_equals_explicit_attention(kernel, seed, dtype, tolerance):
    choose = random.Random(seed)
    causal, sequence = seed % 5 == 0, seed % 5 < 2
    size = (1, choose.choice([1, 3, 17, 70, 150, 300])) if sequence else (choose.randint(1, 20), choose.randint(1, 20))
    shape = (choose.randint(1, 3), choose.randint(1, 3), *size, choose.randint(1, 40), choose.randint(1, 40))
    rows, columns = not sequence and choose.random() < 0.8, choose.random() < 0.8
    tensors = example(shape, rows, columns, dtype, choose.random() < 0.5, choose.choice([0.3, 1, 2]))
    args = shape[4] ** -0.5, causal
    found = [kernel.forward(*tensors[1:], *args), *kernel.backward(*tensors, *args)]
    assert all(t.stride() == torch.empty_like(like).stride() for t, like in zip(found, (tensors[3], *tensors[1:4])))
    compare(found, exact(*tensors, *args), tolerance)


@needs_compiler
@pytest.mark.parametrize('threads', [1, 2, 5])
def test_threads(kernel, threads, monkeypatch):
    """Each takes some heads; numbers do not depend on chance."""
    monkeypatch.setattr(cpp_attention, '_PAIRS', 1)
    tensors = example((2, 3, 6, 9, 8, 4), True, True, torch.float32, False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = [[kernel.forward(*tensors[1:], 0.3, False), *kernel.backward(*tensors, 0.3, False)] for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    compare(runs[0], exact(*tensors, 0.3, False), 3e-6)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0]))


@needs_compiler
def test_extreme_numbers(kernel):
    """Weights that vanish, and what is no number stays none, where it is."""
    grad, q, k, v, rel_h, rel_w = example((1, 2, 5, 7, 8, 3), True, True, torch.float32, False)
    tensors = grad, q * 300, k * 300, v, rel_h, rel_w
    compare(kernel.forward(*tensors[1:], 0.3, False)[None], exact(*tensors, 0.3, False)[:1], 3e-6)
    for value in (torch.nan, torch.inf):
        spoiled = q.clone()
        spoiled[0, 1, 2, 3] = value
        out = kernel.forward(spoiled, k, v, rel_h, rel_w, 0.3, False)
        assert out[0, 1, 2, 3].isnan().all() and out.isnan().sum() == 3
    spoiled = v.clone()
    spoiled[0, 0, 4, 6, 1] = torch.nan
    assert kernel.forward(q, k, spoiled, rel_h, rel_w, 0.3, False).isnan().nonzero()[:, 4].unique().tolist() == [1]


@needs_compiler
def test_no_output_depends_on_a_later_input(kernel):
    _, q, k, v, _, rel_w = example((1, 1, 1, 200, 8, 4), False, True, torch.float32, False)
    before = kernel.forward(q, k, v, None, rel_w, 0.3, True)
    k[:, :, :, 120:], v[:, :, :, 120:] = 50, 1e6
    after = kernel.forward(q, k, v, None, rel_w, 0.3, True)
    assert torch.equal(before[:, :, :, :120], after[:, :, :, :120]) and not torch.equal(before, after)


@needs_compiler
def test_taken_where_it_can_be(fresh):
    _, q, k, v, *tables = example((1, 2, 6, 5, 8, 4), True, True, torch.float32, True)
    kernel = kernel_for(q, k, v, None)
    assert isinstance(kernel, CppAttention) and len(list(fresh.iterdir())) == 1
    assert torch.equal(blockwise_attention(q, k, v, *tables, 0.3, False), kernel.forward(q, k, v, *tables, 0.3, False))
    grads = blockwise_attention_backward(v, q, k, v, *tables, 0.3, False)
    assert all(torch.equal(a, b) for a, b in zip(grads, kernel.backward(v, q, k, v, *tables, 0.3, False)))
    assert kernel_for(q.bfloat16(), k.bfloat16(), v.bfloat16(), None)
    for change in (torch.Tensor.double, torch.Tensor.half, lambda t: t.transpose(2, 3)):
        assert kernel_for(*map(change, (q, k, v)), None) is None
    assert kernel_for(q, k, v.bfloat16(), None) is None and kernel_for(q, k, v, torch.tensor([1])) is None


@needs_compiler
def test_a_gradient_of_any_layout(fresh, monkeypatch):
    """As of a sum, or of a map that was turned."""
    layer = AugmentedConv2d(8, 16, 3, padding=1, dk=8, dv=8, num_heads=2, feat_size=(6, 4))
    x = torch.randn(2, 8, 6, 4)
    for loss in (torch.sum, lambda out: (out.transpose(2, 3).contiguous() * torch.arange(6.)).sum()):
        grads = []
        for value in '01':
            monkeypatch.setenv('AA_MODELS_CPP', value)
            grads.append(torch.autograd.grad(loss(layer(x)), list(layer.parameters())))
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize('choose,value', [(torch.set_default_dtype, torch.float64), (torch.set_default_device, 'meta')])
def test_other_defaults_of_the_user(kernel, choose, value):
    tensors = example((1, 2, 5, 7, 8, 3), True, True, torch.float32, False)
    expected = exact(*tensors, 0.3, False)
    dtype = torch.get_default_dtype()
    try:
        choose(value)
        found = [kernel.forward(*tensors[1:], 0.3, False), *kernel.backward(*tensors, 0.3, False)]
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
    assert {(t.dtype, t.device.type) for t in found} == {(torch.float32, 'cpu')}
    compare(found, expected, 3e-6)


@needs_compiler
def test_compiled_once(fresh, monkeypatch):
    assert cpp_build.load_library(SOURCE) is not None
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: pytest.fail('compiled again'))
    assert cpp_build.load_library(SOURCE) is not None
    monkeypatch.setattr(cpp_build, '_OPTIONS', [*cpp_build._OPTIONS, '-DOTHER'])
    with pytest.raises(pytest.fail.Exception, match='compiled again'):
        cpp_build.load_library(SOURCE)


@needs_compiler
def test_a_damaged_library_is_made_again(fresh, tmp_path, monkeypatch):
    """As the loss of power leaves it."""
    assert cpp_build.load_library(SOURCE) is not None
    whole, = fresh.glob('*.so')
    library = tmp_path / 'other' / 'aa_models' / whole.name  # for a path it has loaded, the system does not look again
    library.parent.mkdir(parents=True)
    library.write_bytes(b'')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
    assert cpp_build.load_library(SOURCE) is not None
    assert library.stat().st_size == whole.stat().st_size


def refused(message):
    q = torch.randn(1, 2, 3, 3, 4)
    with pytest.warns(UserWarning, match=f'without the C.. kernel.*{message}.*AA_MODELS_CPP=0'):
        assert kernel_for(q, q, q, None) is None
    with warnings.catch_warnings(action='error'):  # said once
        assert kernel_for(q, q, q, None) is None
        torch.testing.assert_close(
            blockwise_attention(q, q, q, None, None, 0.3, False), exact(q, q, q, q, None, None, 0.3, False)[0].float())


@needs_compiler
def test_a_compiler_that_fails(fresh, monkeypatch):
    monkeypatch.setattr(cpp_build, '_OPTIONS', ['-std=c++17', '--no-such-option'])
    refused('SubprocessError was raised: .* said .*no-such-option')
    assert not list(fresh.iterdir())  # nothing half-built


@needs_compiler
def test_a_cache_that_cannot_be_written(fresh, monkeypatch):
    fresh.write_text('a file where the folder would be')
    refused('Error was raised: .*aa_models')


@needs_compiler
def test_wrong_numbers(fresh, monkeypatch):
    right = CppAttention.forward
    monkeypatch.setattr(CppAttention, 'forward', lambda *args: right(*args) * 1.001)
    refused('in its trial a number differed by .* of the largest')


@pytest.mark.parametrize('machine', ['without a compiler', 'of other instructions', 'where it is switched off'])
def test_machines_that_go_without(fresh, monkeypatch, machine):
    """Without a word."""
    if machine == 'without a compiler':
        monkeypatch.setenv('CXX', 'no-such-compiler')
        monkeypatch.setenv('PATH', '')
    elif machine == 'of other instructions':
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'DEFAULT')
    else:
        monkeypatch.setenv('AA_MODELS_CPP', '0')
    q = torch.randn(1, 2, 3, 3, 4)
    with warnings.catch_warnings(action='error'):
        assert kernel_for(q, q, q, None) is None
    assert not fresh.exists()
