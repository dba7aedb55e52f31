"""What every model of this package must do: each registered name, in its small form, passes the same checks."""
import copy
import itertools
from dataclasses import fields

import pytest
import timm
import torch
from timm.layers import set_scriptable
from timm.models import create_feature_extractor, get_graph_node_names, group_parameters
from timm.optim import create_optimizer_v2
from torch import fx, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torchvision.models import feature_extraction

from aa_models.layers import AttentionArgs
from daily import daily
from found import augmented
from our_models import NAMES, NETWORKS, STAGED, arguments, count, create, evaluating, images, pads_by_size
from torch_faults import skip_where_pooling_has_one_size

# where the work is long and the name alone matters little; two networks have both kinds of attention, and both bodies
every_network = pytest.mark.parametrize('name', NETWORKS)
all_but_augmented = pytest.mark.parametrize('name', STAGED)
slow_but_for_two = pytest.mark.parametrize('name', daily(NETWORKS, 'aa_resnet18', 'laa_simplecnn'))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return evaluating(name)


@pytest.fixture
def x(name):
    return images(name)


def count_stages(name):
    # as many as features but for the stem; MnasNet's are those after its first two, and two on a map of 14 px
    return len(create(name, device='meta').feature_info) - ('mnasnet' not in name)


# how it is made

@all_but_augmented
def test_full_size(name):
    """What attention adds to the network without it and takes from it, by the layer's formula."""
    model = timm.create_model(name, device='meta')
    cfg = model.pretrained_cfg
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert model.num_classes == cfg['num_classes'] and model.in_chans == cfg['input_size'][0]
    if not cfg.get('hf_hub_id'):
        small = 10 if 'resnet' in name else 100
        assert cfg['num_classes'] == (small if cfg['input_size'] == (3, 32, 32) else 1000) and not cfg.get('file')
    plain = timm.create_model(name, device='meta', attn_stages=[False] * count_stages(name))
    total = count(plain)
    for layer_name, layer in augmented(model).items():
        conv, dk, dv = plain.get_submodule(layer_name), layer.dk, layer.dv
        tables = sum(p.numel() for p in (layer.attn.rel_h, layer.attn.rel_w)) if layer.attn.pos_embed == 'rel' else 0
        total += conv.in_channels * (2 * dk + dv) + dv * dv + tables - conv.weight[0].numel() * dv
    assert count(model) == total
    # linear attention with waves, softmax with tables
    kind = {'aa': {('softmax', 'rel')}, 'laa': {('linear', 'sincos')}}.get(name.partition('_')[0], set())
    assert {(arguments(m)['attention'], m.attn.pos_embed) for m in augmented(model).values()} == kind


@all_but_augmented
def test_arguments_reach_the_layers(name):
    stages = count_stages(name)
    only_last = [False] * (stages - 1) + [True]
    args = dict(
        dk=16, dv=12, num_heads=4, attention='linear', pos_embed='coord', attn_drop=0.125, attn_init='local')
    assert args.keys() | {'attn_pool'} == {field.name for field in fields(AttentionArgs)}
    kwargs = dict(args, attn_pool=[1] * (stages - 1) + [2], img_size=(64, 96))
    layers = augmented(create(name, device='meta', attn_stages=only_last, **kwargs))
    everywhere = augmented(create(name, device='meta', attn_stages=[True] * stages, **kwargs))
    assert layers and list(layers) == list(everywhere)[-len(layers):] and len(everywhere) >= stages
    assert all(arguments(layer) == dict(args, attn_pool=2) for layer in layers.values())


@all_but_augmented
def test_wrong_arguments(name):
    """Also where no layer is augmented."""
    stages = count_stages(name)
    everywhere = [True] * stages
    wrong = [
        (dict(attn_stages=[True, *everywhere]), ValueError, f'one value for each of the {stages} stages'),
        (dict(attn_stages=everywhere, dv=7), ValueError, 'cannot be augmented: dv=7'),
        (dict(unheard_of=1), TypeError, "unexpected .*'unheard_of'"),
        (dict(attn_drop=1.5), ValueError, 'attn_drop must be a probability.* got 1.5'),
        (dict(attn_drop='0.1'), ValueError, "attn_drop must be a probability.* got '0.1'"),
        (dict(attention='full'), ValueError, "attention must be one of .*'softmax', 'linear'.* got 'full'"),
        (dict(attention='linear', pos_embed='rel'), ValueError, "with attention='linear' must be .*coord.* got 'rel'"),
        *((dict(attn_stages=everywhere, img_size=size), ValueError, 'img_size must be an int or a pair')
          for size in (0, -5, 1.5, 'a', (96,), (3, 64, 64)))]
    for (kwargs, error, words), flag in itertools.product(wrong, (True, False)):
        with pytest.raises(error, match=words):
            create(name, device='meta', **{'attn_stages': [flag] * stages, **kwargs})


@all_but_augmented
def test_fills_empty_memory(name):
    model = create(name, device='meta', dtype=torch.float64)
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model = model.to_empty(device='cpu')
    for t in [*model.parameters(), *model.buffers()]:
        if t.is_floating_point():
            nn.init.constant_(t, float('nan'))
    model.init_weights()
    assert all(t.isfinite().all() for t in [*model.parameters(), *model.buffers()])
    assert model.eval()(images(name, dtype=torch.float64)).isfinite().all()


@every_network
def test_made_and_run_without_data(name):
    """In FakeTensorMode, as on the meta device."""
    with FakeTensorMode():
        model, x = create(name), images(name)
        y = model(x)
        y.sum().backward()
    tensors = [y, *model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    assert all(isinstance(t, FakeTensor) and t.device.type == 'cpu' for t in tensors) and y.shape == (2, 7)
    meta = create(name, device='meta')
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in meta.state_dict().items()}


# what it computes

@torch.no_grad()
def test_any_size(model):
    for size in ((64, 64), (65, 33), (40, 97)):
        y = model(torch.randn(1, 3, *size))
        assert y.shape == (1, 7) and y.isfinite().all()
    assert model(torch.randn(0, 3, 64, 64)).shape == (0, 7)


@torch.no_grad()
def test_other_channels(name):
    for in_chans in (1, 5):
        model = create(name, in_chans=in_chans)
        assert model(images(name, in_chans=in_chans)).shape == (2, 7) and model.in_chans == in_chans


@torch.no_grad()
def test_classifier_is_replaced(model, x):
    model.double()
    x = x.double()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size) and features.shape[1] == model.num_features
    for num_classes, pool, shape in ((3, None, (3,)), (3, 'max', (3,)), (0, None, pooled.shape[1:])):
        model.reset_classifier(num_classes, pool)
        y = model(x)
        assert y.shape == (2, *shape) and y.dtype == torch.float64 and model.num_classes == num_classes
    assert isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(0, '')
    assert torch.equal(model(x), features)


@torch.no_grad()
def test_features(name, model, x):
    """By `forward_intermediates` with all its options, by `features_only`, and from a pruned model."""
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]
    assert [x.shape[3] // m.shape[3] for m in maps] == [info['reduction'] for info in model.feature_info]
    for options in ({}, dict(stop_early=True)):
        torch.testing.assert_close(model.forward_intermediates(
            x, indices=[0, 2], intermediates_only=True, **options), [maps[0], maps[2]])
    torch.testing.assert_close(model.forward_intermediates(x, 2, norm=True)[1][0], maps[-2])

    torch.manual_seed(1)
    features = create(name, features_only=True).eval()
    torch.manual_seed(1)
    torch.testing.assert_close(features(x), create(name).eval().forward_intermediates(x, intermediates_only=True))
    assert features.feature_info.channels() == [m.shape[1] for m in maps]

    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([1]) == [1] and count(pruned) < count(model)
    torch.testing.assert_close(pruned.forward_intermediates(x, [1])[1], maps[1:2])


@pytest.mark.parametrize('kwargs', [{}, dict(pos_embed='none', attn_drop=0.25)], ids=['', 'arguments'])
def test_saved_and_loaded(name, kwargs, x, tmp_path):
    model = evaluating(name, **kwargs)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    torch.save(model, tmp_path / 'model.pt')
    for other in (
            copy.deepcopy(model), torch.load(tmp_path / 'model.pt', weights_only=False),
            timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()):
        with torch.inference_mode():
            assert torch.equal(other(x), model(x))
        assert list(map(arguments, augmented(other).values())) == list(map(arguments, augmented(model).values()))


@torch.no_grad()
def test_channels_last_and_low_precision(model, x):
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        result = model(x)
    torch.testing.assert_close(result.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


# how it learns

def test_gradients_with_checkpointing_and_without(model, x):
    """They reach every parameter, and are the same."""
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def step():
        model.load_state_dict(state)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = step()
    assert [name for name, grad in plain[1].items() if not (grad.isfinite().all() and grad.any())] == []
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(), plain)


@all_but_augmented
def test_weight_decay_and_layer_decay(name):
    model = create(name)
    tables = {n for n, _ in model.named_parameters() if 'rel_' in n}
    assert model.no_weight_decay() == tables and bool(tables) == name.startswith('aa')
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert len(groups) > 2 and sorted(n for names in groups.values() for n in names) == sorted(
            n for n, _ in model.named_parameters())
    optimizer = create_optimizer_v2(model, 'sgd', lr=1., weight_decay=0.1, layer_decay=0.5)
    scales = {group['lr_scale'] for group in optimizer.param_groups}
    assert len(scales) >= 4 and max(scales) == 1.
    exempt = {id(p) for group in optimizer.param_groups if not group['weight_decay'] for p in group['params']}
    assert all(id(p) in exempt for n, p in model.named_parameters() if n in tables)


# what torch makes of it

@every_network
@torch.no_grad()
def test_fx_features(model, x):
    node = [n for n in get_graph_node_names(model)[1] if n.startswith(model.feature_info[-1]['module'])][-1]
    expected = model.forward_intermediates(x, intermediates_only=True)[-1]
    torch.testing.assert_close(create_feature_extractor(model, [node])(x)[node], expected)


@every_network
@torch.no_grad()
def test_traced_by_fx_without_an_argument(model, x):
    """By torch, and by torchvision, which traces training and evaluation; it holds for every size."""
    traced = fx.symbolic_trace(model)
    last = model.feature_info[-1]['module']
    extractor = feature_extraction.create_feature_extractor(model, {last: 'map'}).eval()
    for other in (x, torch.randn(1, 3, 48, 80)):
        torch.testing.assert_close(traced(other), model(other))
        torch.testing.assert_close(
            extractor(other)['map'], model.forward_intermediates(other, intermediates_only=True)[-1])
    assert dict(traced.named_parameters()).keys() == dict(model.named_parameters()).keys()


@slow_but_for_two
@torch.no_grad()
def test_compile_fullgraph(model, x, fresh_compiler):
    dynamic = False if pads_by_size(model) else None  # torch would work for minutes on formulas of padding
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    for other in (x, torch.randn(2, 3, 48, 80)):
        torch.testing.assert_close(compiled(other), model(other), rtol=1e-4, atol=1e-5)


@slow_but_for_two
@torch.no_grad()
def test_export(model, x):
    if any(isinstance(module, nn.MaxPool2d) for module in model.modules()):
        skip_where_pooling_has_one_size()
    smallest = max(16, model.feature_info[-1]['reduction'] + 1)  # a last map of one pixel is a special case to export
    height, width = (torch.export.Dim(n, min=smallest, max=512) for n in ('height', 'width'))
    one_size = pads_by_size(model)
    free = {0: torch.export.Dim('batch', max=64)} | ({} if one_size else {2: height, 3: width})
    program = torch.export.export(model, (x,), dynamic_shapes=(free,))
    for other in (x, torch.randn(3, *x.shape[1:]) if one_size else torch.randn(3, 3, 48, 80)):
        torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:.*torch.jit.*deprecated')
@every_network
@torch.no_grad()
def test_script(name, x):
    with set_scriptable(True):
        model = evaluating(name)
    scripted = torch.jit.script(model)
    for other in (x, torch.randn(1, 3, 40, 56)):
        torch.testing.assert_close(scripted(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:.*torch.jit.*deprecated')
@torch.no_grad()
def test_explicit_attention_compiles_exports_and_scripts(fresh_compiler):
    model, x = evaluating('aa_simplecnn'), images('aa_simplecnn')
    expected = model(x)
    for layer in augmented(model).values():
        layer.attn.fused_attn = False
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    for way in (
            torch.compile(model, fullgraph=True, backend='aot_eager'), torch.export.export(model, (x,)).module(),
            torch.jit.trace(model, x), torch.jit.script(model)):
        torch.testing.assert_close(way(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # inductor calls a C++ compiler
@pytest.mark.parametrize('name', ['aa_simplecnn', 'laa_simplecnn'])
def test_compile_inductor_trains(model, x, fresh_compiler):
    compiled = torch.compile(model, fullgraph=True)
    compiled(x).square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(gradients, [p.grad for p in model.parameters()], rtol=1e-3, atol=1e-4)
