"""torch.func's transforms and forward-mode differentiation: equal to the loop, to finite differences, to the transpose.

On a CPU the layers' forward pass is an operator that has no rules for them; under a transform they must not run it.
"""
import pytest
import timm
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

from aa_models.layers import AugmentedConv1d, AugmentedConv2d, SelfAttentionConv2d, softmax_attention
from torch_faults import skip_where_compiling_is_called_exporting

ARGS = dict(dk=4, dv=4, num_heads=2, feat_size=4, dtype=torch.float64)
LAYERS = {
    'softmax': lambda: AugmentedConv2d(3, 6, 3, padding=1, **ARGS),
    'strided and pooled': lambda: AugmentedConv2d(3, 6, 3, 2, 1, attn_pool=2, **ARGS),
    'softmax, coord': lambda: AugmentedConv2d(3, 6, 3, padding=1, pos_embed='coord', **ARGS),
    'linear': lambda: AugmentedConv2d(4, 6, 3, padding=1, attention='linear', pos_embed='sincos', **ARGS),
    'sequence': lambda: AugmentedConv1d(3, 6, 3, padding=1, **ARGS),
    'causal': lambda: AugmentedConv1d(3, 6, 3, causal=True, **ARGS),
    'sagan': lambda: SelfAttentionConv2d(3, 5, num_heads=2, dim_head=2, gamma=0.7, dtype=torch.float64),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


def images(layer, batch=3):
    axes = layer.ndim if hasattr(layer, 'ndim') else 2
    return torch.randn(batch, layer.in_channels, *(5, 4)[:axes], dtype=torch.float64)


def with_parameters(layer, x):
    """The layer as a function of its parameters and its input, and those."""
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    return lambda values, x: functional_call(layer, values, (x,)), (parameters, x)


def mapped(function, *points):
    """A function of tensors applied to parameters and input."""
    parameters = {name: function(*(point[0][name] for point in points)) for name in points[0][0]}
    return parameters, function(*(point[1] for point in points))


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_jvp_is_the_slope_and_the_transpose_of_vjp(layer):
    function, point = with_parameters(layer, images(layer))
    tangent = mapped(torch.randn_like, point)
    y, slope = jvp(function, point, tangent)
    with torch.no_grad():
        close(y, layer(point[1]))
        ahead, behind = (function(*mapped(lambda p, t, h=h: p + h * t, point, tangent)) for h in (1e-5, -1e-5))
        close(slope, (ahead - behind) / 2e-5, 1e-7)
    # reverse mode outside of transforms is the operator's own
    x, weight = point[1].clone().requires_grad_(), torch.randn_like(y)
    names, parameters = zip(*layer.named_parameters())
    *gradients, x_gradient = torch.autograd.grad((layer(x) * weight).sum(), (*parameters, x))
    product = sum((g * tangent[0][name]).sum() for g, name in zip(gradients, names)) + (x_gradient * tangent[1]).sum()
    close((slope * weight).sum(), product)


def test_forward_mode_without_functorch(layer):
    """Also with every other tensor constant, so that a single one carries the tangent."""
    function, (parameters, x) = with_parameters(layer, images(layer))
    for name, p in parameters.items():
        tangent = torch.randn_like(p)
        _, expected = jvp(lambda p, name=name: function({**parameters, name: p}, x), (p,), (tangent,))
        with torch.no_grad(), forward_ad.dual_level():
            out = function({**parameters, name: forward_ad.make_dual(p, tangent)}, x)
            close(forward_ad.unpack_dual(out).tangent, expected)


def test_vmap_over_images_and_batches(layer):
    x = images(layer)
    close(vmap(lambda image: layer(image[None])[0])(x), layer(x))
    close(vmap(layer)(torch.stack([x, -x])), torch.stack([layer(x), layer(-x)]))


@pytest.mark.parametrize('kind', LAYERS)
def test_vmap_over_an_ensemble(kind):
    layers = [LAYERS[kind]() for _ in range(3)]
    x = images(layers[0])
    found = vmap(lambda *state: functional_call(layers[0], state, (x,)))(*stack_module_state(layers))
    close(found, torch.stack([layer(x) for layer in layers]))


def test_gradients_of_each_image(layer):
    x = images(layer)
    function, (parameters, _) = with_parameters(layer, x)
    found = vmap(grad(lambda p, image: function(p, image[None]).square().sum()), (None, 0))(parameters, x)
    for i, image in enumerate(x):
        layer.zero_grad()
        layer(image[None]).square().sum().backward()
        for name, p in layer.named_parameters():
            close(found[name][i], p.grad)


def test_jacobians(layer):
    x = images(layer, 1)
    close(jacrev(layer)(x), torch.autograd.functional.jacobian(layer, x))


def test_second_derivatives(layer):
    """Those of a layer built for explicit attention, which plain autograd can take."""
    x = images(layer, 1)[..., :2]
    found = hessian(lambda x: layer(x).pow(3).sum())(x)
    if hasattr(layer.attn, 'fused_attn'):
        layer.attn.fused_attn = False
    close(found, torch.autograd.functional.hessian(lambda x: layer(x).pow(3).sum(), x))


def test_a_transform_that_is_compiled():
    """The one that would be wrong without a word: a tangent of 0."""
    skip_where_compiling_is_called_exporting()
    layer = LAYERS['softmax']()
    x, tangent = images(layer), images(layer)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: jvp(layer, (x,), (tangent,))[1], fullgraph=True, backend='eager')
    close(compiled(x), jvp(layer, (x,), (tangent,))[1])


@pytest.mark.parametrize('name', ['aa_simplecnn', 'laa_simplecnn'])
def test_a_network(name):
    model = timm.create_model(name, num_classes=4, img_size=16, dtype=torch.float64).eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tangent = torch.randn_like(x)
    _, slope = jvp(model, (x,), (tangent,))
    weight = torch.randn_like(slope)
    close((slope * weight).sum(), (torch.autograd.functional.vjp(model, x, weight)[1] * tangent).sum())
    close(vmap(lambda image: model(image[None])[0])(x), model(x))


def test_the_operator_runs_again_when_a_transform_is_over(monkeypatch):
    called, operator = [], softmax_attention.blockwise_attention
    monkeypatch.setattr(softmax_attention, 'blockwise_attention', lambda *args: called.append(1) or operator(*args))
    layer = LAYERS['softmax']()
    x = images(layer)
    jvp(layer, (x,), (x,))
    vmap(layer)(x[None])
    assert not called
    layer(x)
    assert called
