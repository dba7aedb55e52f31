"""torch.func's transforms, forward mode and second derivatives, equal to the loop and to finite differences.

On a CPU the layers' forward pass is an operator that has no rules for transforms; under one they must not run it. Its
backward pass has no gradient; where one is wanted, it must not run either.
"""
import copy
import math
import random

import pytest
import timm
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils.checkpoint import checkpoint

from aa_models.layers import AugmentedConv2d, SelfAttentionConv2d, blockwise, softmax_attention
from daily import daily
from our_models import uneven
from random_layers import KINDS, random_layer
from torch_faults import skip_where_compiling_is_called_exporting

CAUSAL = dict(causal=True, padding=0, attn_pool=1)
EVERY_KIND = [(axes, kind) for axes in (1, 2) for kind in KINDS]
EVERY_KIND += [(1, dict(CAUSAL, pos_embed=pos_embed)) for pos_embed in ('rel', 'sincos', None)]
# of these every day: softmax attention with tables, on one axis, two, and causal; linear attention on two
CASES = daily(range(30), 0, 7, 11, 14)


def plain_layer():
    return AugmentedConv2d(3, 6, 3, padding=1, dk=4, dv=4, num_heads=2, feat_size=4, dtype=torch.float64)


def as_if_trained(module):
    """The module with all its weights moved."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module


@pytest.fixture(params=[*CASES, 'sagan'])
def case(request):
    """A layer and its input, in float64, with weights unlike those it starts with; the map has several pixels."""
    if request.param == 'sagan':
        layer = SelfAttentionConv2d(3, 5, num_heads=2, dim_head=2, gamma=0.7, dtype=torch.float64)
        return as_if_trained(layer), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    axes, kind = EVERY_KIND[request.param % len(EVERY_KIND)]
    rng = random.Random(request.param)
    while True:
        layer, x = random_layer(rng, axes, **kind)
        if math.prod(layer.attn.map_size(x)) > 1:
            return as_if_trained(layer), x


def with_parameters(layer, x):
    """The layer as a function of its input and its parameters, and those."""
    names, parameters = zip(*layer.named_parameters())
    return lambda x, *values: functional_call(layer, dict(zip(names, values)), (x,)), (x, *(
        p.detach() for p in parameters))


def gradients(function, point, weight, **kwargs):
    """Those of the sum of the weighted output, by plain autograd."""
    leaves = [t.detach().requires_grad_() for t in point]
    return leaves, torch.autograd.grad((function(*leaves) * weight).sum(), leaves, **kwargs)


def slope(function, point, tangent, step=3e-4):
    """The derivatives of functions along a tangent by finite differences; the error falls with the step's 4th power."""
    def at(distance):
        return function(*(p + distance * t for p, t in zip(point, tangent)))
    near, far = ([a - b for a, b in zip(at(h), at(-h))] for h in (step, 2 * step))
    return [(8 * n - f) / (12 * step) for n, f in zip(near, far)]


def dot(a, b):
    return sum((s * t).sum() for s, t in zip(a, b))


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def small_noise(tensors):
    return tuple(0.3 * torch.randn_like(t) for t in tensors)


def test_jvp_is_the_slope_and_the_transpose_of_vjp(case):
    function, point = with_parameters(*case)
    tangent = small_noise(point)
    y, found = jvp(function, point, tangent)
    with torch.no_grad():
        close(y, function(*point))
        close([found], slope(lambda *p: [function(*p)], point, tangent))
    weight = torch.randn_like(y)
    for product in (vjp(function, *point)[1](weight), gradients(function, point, weight)[1]):
        close((found * weight).sum(), dot(product, tangent))


def test_forward_mode_without_functorch(case):
    """Also with every other tensor constant, so that a single one carries the tangent."""
    function, point = with_parameters(*case)
    tangents = small_noise(point)
    for i, tangent in enumerate(tangents):
        def along(p, i=i):
            return function(*point[:i], p, *point[i + 1:])
        _, expected = jvp(along, (point[i],), (tangent,))
        with torch.no_grad(), forward_ad.dual_level():
            close(forward_ad.unpack_dual(along(forward_ad.make_dual(point[i], tangent))).tangent, expected)


def test_vmap_over_images_and_batches(case):
    layer, x = case
    close(vmap(lambda image: layer(image[None])[0])(x), layer(x))
    close(vmap(layer)(torch.stack([x, -x])), torch.stack([layer(x), layer(-x)]))


def test_vmap_over_an_ensemble(case):
    layer, x = case
    layers = [as_if_trained(copy.deepcopy(layer)) for _ in range(3)]
    found = vmap(lambda *state: functional_call(layer, state, (x,)))(*stack_module_state(layers))
    close(found, torch.stack([one(x) for one in layers]))


def test_gradients_of_each_image(case):
    function, (x, *parameters) = with_parameters(*case)
    numbers = tuple(range(1, len(parameters) + 1))
    found = vmap(
        grad(lambda image, *p: function(image[None], *p).square().sum(), numbers), (0, *(None for _ in parameters)),
    )(x, *parameters)
    for i, image in enumerate(x):
        leaves = [p.requires_grad_() for p in parameters]
        close([g[i] for g in found], torch.autograd.grad(function(image[None], *leaves).square().sum(), leaves))


def test_jacobians(case):
    layer, x = case
    expected = torch.autograd.functional.jacobian(lambda x: layer(x).flatten()[-9:], x[:1])
    for transform in (jacrev, jacfwd):
        close(transform(lambda x: layer(x).flatten()[-9:])(x[:1]), expected)


def test_second_derivatives(case):
    """Hessian-vector products by plain autograd and by torch.func, against differences of the operator's gradients."""
    function, point = with_parameters(*case)
    weight, tangent = torch.randn_like(function(*point)), small_noise(point)
    leaves, first = gradients(function, point, weight, create_graph=True)
    close(list(first), list(gradients(function, point, weight)[1]))
    close(first[0], gradients(lambda x: function(x, *point[1:]), point[:1], weight)[1][0])
    found = torch.autograd.grad(dot(first, tangent), leaves, allow_unused=True, materialize_grads=True)
    close(list(found), slope(lambda *p: gradients(function, p, weight)[1], point, tangent))
    arguments = tuple(range(len(point)))
    close(jvp(grad(lambda *p: (function(*p) * weight).sum(), arguments), point, tangent)[1], found)


def test_a_gradient_penalty_with_checkpointing():
    layer = as_if_trained(plain_layer())
    images = torch.randn(2, 3, 5, 4, dtype=torch.float64)

    def penalty(run):
        layer.zero_grad()
        x = images.clone().requires_grad_()
        torch.autograd.grad(run(x).pow(3).sum(), x, create_graph=True)[0].square().sum().backward()
        return [p.grad for p in layer.parameters()]

    expected = penalty(layer)
    close(penalty(lambda x: checkpoint(layer, x, use_reentrant=False)), expected)
    layer.attn.fused_attn = False
    close(penalty(layer), expected)


def test_a_transform_that_is_compiled(fresh_compiler):
    """The one that would be wrong without a word: a tangent of 0."""
    skip_where_compiling_is_called_exporting()
    layer = plain_layer()
    x, tangent = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    compiled = torch.compile(lambda x: jvp(layer, (x,), (tangent,))[1], fullgraph=True, backend='eager')
    close(compiled(x), jvp(layer, (x,), (tangent,))[1])


@pytest.mark.parametrize('name, kwargs, size', [
    ('aa_resnet18', dict(pretrained=True), 64), ('aa_wrn16_8', {}, 16),
    *((name, dict(num_classes=4, img_size=16), 16) for name in ('aa_simplecnn', 'laa_simplecnn'))])
def test_a_network(name, kwargs, size):
    """Its ReLUs have kinks, which finite differences meet now and then."""
    model = timm.create_model(name, **kwargs).double().eval()
    if not kwargs.get('pretrained'):
        uneven(model)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    tangent = torch.randn_like(x)
    _, found = jvp(model, (x,), (tangent,))
    weight = torch.randn_like(found)
    product = torch.autograd.functional.vjp(model, x, weight)[1]
    close((found * weight).sum() / found.norm(), (product * tangent).sum() / found.norm())
    with torch.no_grad():
        close(found / found.norm(), slope(lambda x: [model(x)], [x], [tangent], 1e-7)[0] / found.norm(), 1e-5)
        close(vmap(lambda image: model(image[None])[0])(x), model(x))


def test_the_operator_runs_where_it_can(monkeypatch):
    """Again when a transform is over, and backward too unless second derivatives are wanted."""
    called = []
    for module, name in ((softmax_attention, 'blockwise_attention'), (blockwise, 'blockwise_attention_backward')):
        operator = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, name=name, operator=operator: called.append(name) or operator(*args))
    layer, x = plain_layer(), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    jvp(layer, (x,), (x,))
    vmap(layer)(x[None])
    assert not called
    loss = layer(x).square().sum()
    torch.autograd.grad(loss, layer.attn.rel_h, create_graph=True)
    assert called == ['blockwise_attention']
    loss.backward()
    assert called == ['blockwise_attention', 'blockwise_attention_backward']
