"""The registered models: parameters by the papers' rule, timm's interface, the same numbers by every compiler."""
import copy
import fnmatch

import pytest
import timm
import torch
from timm.layers import set_fused_attn, set_scriptable
from timm.models import create_feature_extractor, get_graph_node_names
from timm.optim import create_optimizer_v2

import aa_models  # noqa: F401, registers the models
from aa_models.models.simplecnn import checkpoint_filter_fn
from found import augmented
from torch_faults import skip_where_pooling_has_one_size

RESNETS = ['aa_resnet18', 'aa_resnet34', 'aa_resnet50', 'aa_resnet101', 'aa_resnet152', 'laa_resnet18', 'laa_resnet50']
WRNS = [prefix + name for name in ('wrn28_10', 'wrn16_8') for prefix in ('', 'aa_', 'laa_')]
SHALLOW = ['simplecnn', 'aa_simplecnn', 'laa_simplecnn']
ALL = RESNETS + WRNS + SHALLOW
FAMILIES = ['aa_resnet18', 'laa_resnet18', 'aa_wrn16_8', 'laa_wrn16_8', 'aa_simplecnn', 'laa_simplecnn']
# small ones for tests that are not about size
SMALL = {
    'aa_resnet18': dict(img_size=64), 'laa_resnet18': dict(img_size=64),
    'aa_wrn16_8': dict(depth=10, width=1, img_size=16), 'laa_wrn16_8': dict(depth=10, width=1, img_size=16),
    'aa_simplecnn': dict(img_size=16), 'laa_simplecnn': dict(img_size=16),
}
SMALL['aa_wrn16_8'].update(dk=8, dv=8)
SMALL['laa_wrn16_8'].update(dk=8, dv=8)


def small(name, **kwargs):
    """A model and images for it, evaluating, with batch norms that are not the identity."""
    model = timm.create_model(name, num_classes=7, **{**SMALL[name], **kwargs}).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.weight.data.uniform_(0.5, 1.5)
    side = SMALL[name]['img_size']
    return model, torch.randn(2, 3, side, side)


def count(name, **kwargs):
    return sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters())


def test_every_model_is_registered():
    ours = [n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith('aa_models.')]
    assert sorted(ours) == sorted(ALL)


@pytest.mark.parametrize('name,kwargs,expected', [
    ('aa_resnet34', {}, 20_745_072),
    ('aa_resnet50', {}, 25_809_392),
    ('aa_resnet50', dict(dk=0.25, dv=0.25), 24_303_728),
    ('aa_resnet34', dict(attn_stages=(False,) * 4), 21_797_672),
    ('aa_resnet50', dict(attn_stages=(False,) * 4), 25_557_032),
    ('wrn28_10', {}, 36_536_884),
    ('aa_wrn28_10', {}, 36_312_660),
])
def test_parameters_of_the_papers_tables(name, kwargs, expected):
    assert count(name, **kwargs, **(dict(num_classes=1000, img_size=224) if 'resnet' in name else {})) == expected


def resnet_parameters(plain, bottleneck, layers, kappa, upsilon):
    """The paper's rule, written out: what each augmented 3×3 has more or less than the plain one."""
    total = count(plain)
    map_size = {1: 14, 2: 14, 3: 7}  # attended at 224 px: 28 pooled to 14, 14, 7
    for stage in (1, 2, 3):
        width = 64 * 2 ** stage
        dk = max(20 * 8, int(kappa * width / 8) * 8)
        dv = int(upsilon * width / 8) * 8
        for block in range(layers[stage]):
            fan_in = width // 2 if not bottleneck and block == 0 else width
            attention = fan_in * (2 * dk + dv) + dv * dv + 2 * (2 * map_size[stage] - 1) * dk // 8
            total += attention - 9 * fan_in * dv
    return total


@pytest.mark.parametrize('kappa,upsilon', [(None, None), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1.0, 1.0)])
@pytest.mark.parametrize('depth,layers', [
    (18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))])
def test_parameters_by_the_rule(depth, layers, kappa, upsilon):
    bottleneck = depth >= 50
    kwargs = {} if kappa is None else dict(dk=kappa, dv=upsilon)
    if kappa is None:
        kappa, upsilon = (0.2, 0.1) if bottleneck else (0.25, 0.25)
    expected = resnet_parameters(f'resnet{depth}', bottleneck, layers, kappa, upsilon)
    assert count(f'aa_resnet{depth}', num_classes=1000, img_size=224, **kwargs) == expected


def test_what_is_augmented():
    layers = augmented(timm.create_model('aa_resnet50', device='meta', img_size=224))
    assert [fnmatch.fnmatch(n, 'layer[234].*.conv2') for n in layers].count(True) == len(layers) == 4 + 6 + 3
    sizes = {n: ((m.attn.rel_h.shape[0] + 1) // 2, m.attn.attn_pool) for n, m in layers.items()}
    assert [sizes[f'layer{i}.0.conv2'] for i in (2, 3, 4)] == [(14, 2), (14, 1), (7, 1)]
    layers = augmented(timm.create_model('aa_resnet18', device='meta'))
    assert all(n.endswith('conv1') for n in layers) and len(layers) == 6
    layers = augmented(timm.create_model('aa_wrn28_10', device='meta'))
    assert {(m.dk, m.dv, (m.attn.rel_w.shape[0] + 1) // 2) for m in layers.values()} == {
        (160, 16, 32), (160, 32, 16), (160, 64, 8)}
    assert len(layers) == 12 and all(n.endswith('conv1') for n in layers)
    assert not augmented(timm.create_model('wrn28_10', device='meta'))


@pytest.mark.parametrize('name', ['laa_resnet18', 'laa_wrn16_8', 'laa_simplecnn'])
def test_laa_is_linear_attention_with_waves(name):
    layers = augmented(timm.create_model(name, device='meta'))
    assert layers and all(type(m.attn).__name__ == 'LinearAttention' for m in layers.values())
    assert {m.attn.pos_embed for m in layers.values()} == {'sincos'}


def test_default_classes():
    for name in ALL:
        cfg = timm.get_pretrained_cfg(name)
        if not cfg.has_weights:
            assert cfg.num_classes == (1000 if 'resnet' in name else 100)
            assert not cfg.file and not cfg.hf_hub_id


@pytest.mark.parametrize('name', FAMILIES)
def test_arguments_reach_the_layers(name):
    stages = {'aa_resnet18': 4, 'laa_resnet18': 4, 'aa_simplecnn': 2, 'laa_simplecnn': 2}.get(name, 3)
    only_last = [False] * (stages - 1) + [True]
    model = timm.create_model(
        name, device='meta', dk=16, dv=12, num_heads=4, pos_embed='coord', attn_stages=only_last,
        attn_pool=[1] * (stages - 1) + [2], img_size=(64, 96))
    layers = augmented(model)
    last = f'layer{stages}' if 'resnet' in name else f'stages.{stages - 1}'
    assert layers and all(n.startswith(last) for n in layers)
    for m in layers.values():
        assert (m.dk, m.dv, m.num_heads, m.attn.pos_embed, m.attn.attn_pool) == (16, 12, 4, 'coord', 2)
    with pytest.raises(ValueError, match=f'attn_stages must have one value for each of the {stages} stages'):
        timm.create_model(name, device='meta', attn_stages=[True] * (stages + 1))
    with pytest.raises(TypeError, match='unheard_of'):
        timm.create_model(name, device='meta', unheard_of=1)
    with pytest.raises(ValueError, match='cannot be augmented: dv=7'):
        timm.create_model(name, device='meta', dk=16, dv=7)


@pytest.mark.parametrize('name', FAMILIES)
def test_no_positions(name):
    """timm drops arguments that are None, so 'none' says it."""
    layers = augmented(timm.create_model(name, device='meta', pos_embed='none'))
    assert layers and {m.attn.pos_embed for m in layers.values()} == {''}
    assert not any('rel_' in n for m in layers.values() for n, _ in m.named_parameters())


@pytest.mark.parametrize('img_size', [0, -5, 1.5, 'a', (96,), (3, 224, 224)])
def test_bad_img_size(img_size):
    with pytest.raises(ValueError, match='img_size must be an int or a pair'):
        timm.create_model('aa_simplecnn', img_size=img_size)


def test_zero_init_last():
    for zero in (True, False):
        model = timm.create_model('aa_resnet18', zero_init_last=zero)
        assert bool(model.layer2[0].bn2.weight.any()) != zero


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_any_size(name):
    model, _ = small(name)
    for size in ((64, 64), (65, 33), (40, 97)):
        assert model(torch.randn(1, 3, *size)).shape == (1, 7)


def test_tables_are_made_for_img_size():
    layers = augmented(timm.create_model('aa_resnet18', device='meta', img_size=(96, 160)))
    lengths = {n: (m.attn.rel_h.shape[0], m.attn.rel_w.shape[0]) for n, m in layers.items()}
    assert lengths['layer2.0.conv1'] == (11, 19) and lengths['layer4.1.conv1'] == (5, 9)  # 6 × 10 pooled, 3 × 5


@torch.no_grad()
def test_checkpoints_load_at_another_size():
    model, _ = small('aa_simplecnn')
    other = timm.create_model('aa_simplecnn', num_classes=7, img_size=24)
    native = model.state_dict()
    assert all(torch.equal(v, native[k]) for k, v in checkpoint_filter_fn(dict(native), model).items())
    other.load_state_dict(checkpoint_filter_fn(dict(native), other))
    table, resized = model.stages[0][1].conv.attn.rel_h, other.stages[0][1].conv.attn.rel_h
    assert resized.shape[0] == 23
    torch.testing.assert_close(resized[11], table[7])


@pytest.mark.parametrize('name', FAMILIES)
def test_fills_empty_memory(name):
    model = timm.create_model(name, num_classes=7, device='meta', dtype=torch.float64, **SMALL[name])
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model = model.to_empty(device='cpu')
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            if t.is_floating_point():
                t.fill_(float('nan'))
    model.init_weights()
    assert all(t.isfinite().all() for t in [*model.parameters(), *model.buffers()])
    assert model.eval()(torch.randn(1, 3, 32, 32, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize('name', FAMILIES)
def test_weight_decay_and_layer_decay(name):
    model = timm.create_model(name, **SMALL[name])
    tables = {n for n, _ in model.named_parameters() if 'rel_' in n}
    assert model.no_weight_decay() == tables and bool(tables) == (not name.startswith('laa'))
    optimizer = create_optimizer_v2(model, 'sgd', lr=1., weight_decay=0.1, layer_decay=0.5)
    scales = {group['lr_scale'] for group in optimizer.param_groups}
    assert len(scales) >= 4 and max(scales) == 1.
    exempt = {id(p) for group in optimizer.param_groups if not group['weight_decay'] for p in group['params']}
    assert all(id(p) in exempt for n, p in model.named_parameters() if n in tables)


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_compile_fullgraph(name):
    model, x = small(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    other = torch.randn(2, 3, 48, 80)
    torch.testing.assert_close(compiled(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:.*torch.jit.*deprecated')
@torch.no_grad()
def test_explicit_attention_compiles_exports_and_scripts():
    fused, x = small('aa_simplecnn')
    set_fused_attn(False)
    try:
        model = timm.create_model('aa_simplecnn', num_classes=7, **SMALL['aa_simplecnn']).eval()
    finally:
        set_fused_attn(True)
    model.load_state_dict(fused.state_dict())
    expected = fused(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    ways = [
        torch.compile(model, fullgraph=True, backend='aot_eager'), torch.export.export(model, (x,)).module(),
        torch.jit.trace(model, x), torch.jit.script(model)]
    for way in ways:
        torch.testing.assert_close(way(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_copies(name, tmp_path):
    model, x = small(name)
    torch.save(model, tmp_path / 'model.pt')
    for other in (copy.deepcopy(model), torch.load(tmp_path / 'model.pt', weights_only=False)):
        assert torch.equal(other(x), model(x))
    assert model(x[:0]).shape == (0, 7)


@pytest.mark.parametrize('name', ['aa_simplecnn', 'laa_simplecnn'])
def test_compile_inductor_trains(name):
    model, x = small(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    compiled(x).square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model(x).square().sum().backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(gradients[n], p.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_export(name):
    if 'resnet' in name:
        skip_where_pooling_has_one_size()
    model, x = small(name)
    smallest = 33 if 'resnet' in name else 16  # a last map of one pixel would be a special case to torch.export
    height, width = (torch.export.Dim(n, min=smallest, max=512) for n in ('height', 'width'))
    dynamic_shapes = ({0: torch.export.Dim('batch', max=64), 2: height, 3: width},)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic_shapes)
    for shape in ((2, 3, *x.shape[2:]), (3, 3, 48, 80)):
        other = torch.randn(shape)
        torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:.*torch.jit.*deprecated')
@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_script(name):
    with set_scriptable(True):
        model, x = small(name)
    scripted = torch.jit.script(model)
    for other in (x, torch.randn(1, 3, 40, 56)):
        torch.testing.assert_close(scripted(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_fx_features(name):
    model, x = small(name)
    node = 'layer4' if 'resnet' in name else 'norm'
    nodes = [n for n in get_graph_node_names(model)[1] if n.startswith(node)]
    features, = create_feature_extractor(model, nodes[-1:])(x).values()
    torch.testing.assert_close(features, model.forward_features(x))


@pytest.mark.parametrize('name', FAMILIES)
def test_gradient_checkpointing(name):
    model, x = small(name)
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def step():
        model.load_state_dict(state)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        return out.detach(), [p.grad.clone() for p in model.parameters()]

    plain = step()
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(), plain)


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_channels_last_and_low_precision(name):
    model, x = small(name)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        result = model(x)
    torch.testing.assert_close(result.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
