"""Numbers under stress: inputs at the ends of their range, empty, odd in memory or broken, and models used in odd ways.

Every layer by every backend; a small net of each family.
"""
import copy
import itertools
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from timm.layers import set_fused_attn
from torch.nn.attention import SDPBackend, sdpa_kernel

import reference
from aa_models.layers import AugmentedConv1d, AugmentedConv2d, SelfAttentionConv2d
from aa_models.layers import softmax_attention as attention
from aa_models.layers.position import append_coords
from our_models import create

SOFTMAX = [(axes, 'softmax', pos_embed) for axes in (1, 2) for pos_embed in ('rel', 'sincos', 'coord', None)]
SOFTMAX += [(2, 'sagan', None)]
LINEAR = [(axes, 'linear', pos_embed) for axes in (1, 2) for pos_embed in ('sincos', 'coord', None)]
# blockwise and explicit on the machine at hand; folded is what GPUs and exported programs have
CASES = [(*kind, backend) for kind in SOFTMAX for backend in ('blockwise', 'explicit', 'folded')]
CASES += [(*kind, 'linear') for kind in LINEAR]


@pytest.fixture(params=CASES, ids=lambda case: '-'.join(map(str, case)))
def layer(request, monkeypatch):
    """A layer in float64, computed by the backend of the case."""
    axes, kind, pos_embed, backend = request.param
    set_fused_attn(backend != 'explicit')
    monkeypatch.setattr(attention, 'choose_backend', lambda *args: backend)
    args = dict(attention=kind, pos_embed=pos_embed, dk=8, dv=4, num_heads=2, feat_size=5, dtype=torch.float64)
    if kind == 'sagan':
        layer = SelfAttentionConv2d(4, 6, num_heads=2, dim_head=3, gamma=0.7, dtype=torch.float64)
    elif axes == 1:
        layer = AugmentedConv1d(4, 6, 3, padding=1, **args)
    else:
        layer = AugmentedConv2d(4, 6, 3, padding=1, attn_pool=1 + (kind == 'linear'), **args)
    layer.axes, layer.backend = axes, backend
    yield layer
    set_fused_attn(True)


@pytest.fixture(params=['aa_resnet18', 'aa_efficientnet_lite0', 'aa_wrn16_8', 'laa_wrn16_8', 'aa_simplecnn'])
def net(request):
    return create(request.param, img_size=32).eval()


def image(layer, batch=2, **kwargs):
    return torch.randn(batch, 4, *(4, 6)[2 - layer.axes:], **{'dtype': torch.float64, **kwargs})


def expected(layer, x):
    return reference.self_attention_conv(layer, x)[0] if hasattr(layer, 'gamma') else reference.augmented_conv(layer, x)


def gradients(module, x):
    """Of the parameters, by name, and of the input, of a loss that weighs every output in its own way."""
    y = module(x)
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    tensors = {name: t for name, t in [*module.named_parameters(), ('x', x)] if t.requires_grad}
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values()))))


# --- layers


@pytest.mark.parametrize('dtype,tolerance', [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_large_logits_in_half_precision(layer, dtype, tolerance):
    """Beyond 1e4, and 1e6, where float16 has none: who wins is to be what float64 says of the same q, k and v."""
    attn = layer.attn.to(dtype)
    rounded = copy.deepcopy(attn).double()
    for scale in (60., 500.):
        q, k, v = attn.heads(image(layer, dtype=dtype))
        q, k, v = (t.detach().requires_grad_() for t in (q * scale, k * scale, v))
        H, W = q.shape[2:4]
        exact_q, exact_k, exact_v = (t.detach().double().flatten(2, 3) for t in (q, k, v))
        weights = reference.linear_weights(exact_q, exact_k) if layer.backend == 'linear' else (
            reference.softmax_weights(rounded, exact_q, exact_k, H, W))
        out = attn.attend(q, k, v)
        # where the two best are close, either may win: float32 knows logits of 1e6 to a tenth, and a bfloat16 table is
        # rounded again when it is interpolated
        clear = weights.amax(-1) > (0 if layer.backend == 'linear' else 0.999)
        assert clear.float().mean() > 0.8
        torch.testing.assert_close(
            out.double().flatten(2, 3)[clear], (weights @ exact_v)[clear], rtol=tolerance, atol=tolerance)
        out.sum().backward()
        tables = [p for name, p in attn.named_parameters() if 'rel' in name]
        assert all(t.grad.isfinite().all() for t in (q, k, v, *tables))


@torch.no_grad()
def test_autocast_and_bfloat16(layer):
    """Also of activations whose logits are beyond 65504, where float16 ends."""
    layer, x = layer.float(), image(layer, dtype=torch.float32)
    wanted = layer(x)
    for dtype, tolerance in ((torch.float16, 0.008), (torch.bfloat16, 0.06)):
        with torch.autocast('cpu', dtype):
            results, huge, weights = [layer(x)], layer(1000 * x), layer.attn.attention_map(1000 * x).float()
        assert huge.isfinite().all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=0.01, atol=0)
        if dtype == torch.bfloat16:
            results.append(layer.to(dtype)(x.to(dtype)))
        for result in results:
            assert result.dtype == dtype
            torch.testing.assert_close(result.float(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('make', [
    partial(AugmentedConv2d, 8, 16, 3, dk=8, dv=8), partial(AugmentedConv1d, 8, 16, 3, dk=8, dv=8),
    partial(SelfAttentionConv2d, 8, 16, gamma=0.25, act_layer='prelu')])
def test_meta_device_and_initialisation(make):
    layer = make(device='meta', dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())
    assert layer(torch.randn(2, 8, *[9] * getattr(layer, 'ndim', 2), device='meta', dtype=torch.float64)).shape[1] == 16
    layer = layer.to_empty(device='cpu')
    for p in layer.parameters():
        torch.nn.init.constant_(p, math.nan)
    layer.reset_parameters()
    for name, p in layer.named_parameters():
        assert p.isfinite().all() and (p.numel() == 1 or p.std() > 0 or name.endswith(('qkv.bias', 'proj.bias'))), name
    assert make.func != SelfAttentionConv2d or layer.gamma.tolist() == [0.25]


def test_empty_batch(layer):
    x = image(layer, 0, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 6, *x.shape[2:])
    y.sum().backward()
    assert x.grad.shape == x.shape and not any(p.grad.any() for p in layer.parameters())


def test_single_precision_down_to_nothing(layer):
    """Usual numbers, those below float32's normal ones, and zeros."""
    for scale in (1, 1e-40, 0):
        x = scale * image(layer, 1, dtype=torch.float32)
        single = copy.deepcopy(layer).float()
        torch.testing.assert_close(single(x).double(), expected(layer, x), rtol=1e-5, atol=1e-6)
        assert all(g.isfinite().all() for g in gradients(single, x.requires_grad_()).values())


def test_however_the_input_lies_in_memory(layer):
    """Transposed, every second column of a wider one, one image seen as many, channels last."""
    x = image(layer)
    views = [x.transpose(0, 1).contiguous().transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2),
             torch.stack([x, -x], dim=-1).flatten(-2)[..., ::2], x[:1].expand(3, *x.shape[1:])]
    views += [x.contiguous(memory_format=torch.channels_last)] if layer.axes == 2 else []
    for view in views:
        wanted = gradients(layer, view.contiguous().requires_grad_())
        torch.testing.assert_close(gradients(layer, view.detach().requires_grad_()), wanted)
        torch.testing.assert_close(layer(view), layer(view.contiguous()))
    if layer.axes == 2:
        wanted, last = layer(x), layer.to(memory_format=torch.channels_last)(views[-1])
        torch.testing.assert_close(last, wanted)
        assert last.is_contiguous(memory_format=torch.channels_last)


def test_without_the_inputs_and_with_the_inputs_gradient_alone(layer):
    x = image(layer)
    wanted = gradients(layer, x.clone().requires_grad_())
    torch.testing.assert_close(gradients(layer, x), {name: g for name, g in wanted.items() if name != 'x'})
    layer.requires_grad_(False)
    torch.testing.assert_close(gradients(layer, x.clone().requires_grad_()), {'x': wanted['x']})


def test_second_derivatives(layer):
    """The fused call is torch's, and so are its second derivatives: its plain kernel has them."""
    names, parameters = zip(*layer.named_parameters())
    x = image(layer, 1)[..., :2].requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(
            lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x,)), (x, *parameters),
            fast_mode=True)


@torch.no_grad()
def assert_a_broken_image_breaks_no_other(module, x):
    wanted = module(x)
    for value in (math.nan, math.inf, -math.inf):
        broken = x.clone()
        broken[1] = value
        torch.testing.assert_close(module(broken)[[0, 2, 3]], wanted[[0, 2, 3]])


def test_a_broken_image_breaks_no_other(layer):
    assert_a_broken_image_breaks_no_other(layer, image(layer, 4))


@pytest.mark.parametrize('kind', ['softmax', 'linear'])
def test_4096_positions(kind):
    """Against the definition at some queries: no tensor of all pairs here, and none there (test_augmented_conv.py)."""
    N = 2 ** 12
    layer = AugmentedConv1d(
        4, 4, 1, dk=4, dv=4, num_heads=1, feat_size=512, attention=kind, pos_embed='rel' if kind == 'softmax' else None)
    attn, x = layer.double().attn, torch.randn(1, 4, N, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    at = torch.tensor([0, 1, 511, 2048, 4000, N - 1])
    q, k, v = reference.heads(attn, x.unsqueeze(2), 1)
    if kind == 'softmax':
        table = torch.stack([reference.relative(attn.rel_w, offset, N) for offset in range(1 - N, N)])
        q = q[:, :, at] / 2
        offsets = torch.arange(N) - at.unsqueeze(1) + N - 1
        weights = (q @ k.transpose(2, 3) + torch.einsum('bnid,ijd->bnij', q, table[offsets])).softmax(-1)
    else:
        weights = reference.linear_weights(q[:, :, at], k)
    wanted = layer.attn.proj((weights @ v).transpose(2, 3).flatten(1, 2))
    torch.testing.assert_close(y[:, :, at], wanted)
    names, parameters = zip(*(pair for pair in layer.named_parameters() if 'conv' not in pair[0]))
    found, exact = (torch.autograd.grad(t.square().sum(), (x, *parameters)) for t in (y[:, :, at], wanted))
    torch.testing.assert_close(found, exact)


def test_half_precision_counts_no_pixels():
    exact = append_coords(torch.zeros(1, 1, 40000, dtype=torch.float64))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(append_coords(torch.zeros(1, 1, 40000, dtype=dtype)), exact.to(dtype))


# --- nets


@torch.no_grad()
def test_an_image_alone_and_among_others(net):
    """Also where the last map is a single pixel, row or column."""
    for size in ((32, 32), (8, 8), (8, 96), (96, 8)):
        x = torch.randn(5, 3, *size)
        torch.testing.assert_close(torch.cat([net(one) for one in x.split(1)]), net(x), rtol=1e-4, atol=1e-4)


def test_empty_batch_through_a_net(net):
    x = torch.randn(0, 3, 32, 32, requires_grad=True)
    y = net(x)
    y.sum().backward()
    assert y.shape == (0, 7) and x.grad.shape == x.shape and not any(p.grad.any() for p in net.parameters())


def test_deterministic(net):
    """torch then also fills new memory with NaN, so that nothing can depend on what it held."""
    x = torch.randn(2, 3, 32, 32)
    net.train()
    try:
        torch.use_deterministic_algorithms(True)
        runs = [gradients(copy.deepcopy(net), x) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for name, grad in runs[0].items():
        assert torch.equal(grad, runs[1][name]) and grad.isfinite().all(), name


def test_threads_share_a_net(net):
    """Eight at once, each with another size than its neighbours."""
    images = [torch.randn(2, 3, *size) for size in itertools.product((16, 32), (16, 24, 32, 48))] * 2

    def infer(x):
        with torch.inference_mode():
            return net(x)

    wanted = [infer(x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        for found, alone in zip(pool.map(infer, images), wanted):
            torch.testing.assert_close(found, alone)


def test_nothing_stays_from_a_forward_pass(net):
    """After one in inference mode a net, its copy and its pickle train as one that never ran."""
    x = torch.randn(2, 3, 32, 32)
    wanted = gradients(copy.deepcopy(net), x)
    with torch.inference_mode():
        net(x)
    for used in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not any(t.is_inference() for t in used.state_dict().values())
        torch.testing.assert_close(gradients(used, x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize('dtype,tolerance', [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_half_precision_parameters(net, dtype, tolerance):
    x = torch.randn(2, 3, 32, 32)
    wanted = net(x).detach()
    if len(list(net.parameters())) > 100:  # each layer rounds, and the deep network has many
        tolerance *= 2
    net = net.to(dtype)
    y = net(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float() / wanted.std(), wanted / wanted.std(), rtol=0, atol=tolerance)
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients(net, x.to(dtype)).values())


def test_a_broken_image_breaks_no_other_in_a_net(net):
    assert_a_broken_image_breaks_no_other(net, torch.randn(4, 3, 32, 32))
