"""torch-pruning with the pruner of the example."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import aa_models  # noqa: F401, registers the models
from aa_models.layers import AugmentedConv2d

pytest.importorskip('torch_pruning')
from aa_models.examples.pruning import AugmentedConvPruner, prune

pytestmark = pytest.mark.clients
KINDS = [dict(), dict(dv=16), dict(dv=0), dict(attention='linear', pos_embed='sincos'), dict(pos_embed='coord')]


@pytest.mark.parametrize('kind', KINDS, ids=str)
@torch.no_grad()
def test_channels_of_one_layer(kind):
    """What is left computes what it computed; an input channel that goes counts as 0."""
    layer = AugmentedConv2d(6, 16, 3, padding=1, **{**dict(dk=8, dv=4, num_heads=2), **kind}).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    for lost in ([0, 5, 13], [12, 13, 14, 15], list(range(12))):
        pruned = AugmentedConvPruner().prune_out_channels(copy.deepcopy(layer), lost)
        kept = [i for i in range(16) if i not in lost]
        assert pruned.out_channels == len(kept) and (pruned.conv is None or pruned.conv.out_channels <= len(kept))
        torch.testing.assert_close(pruned(x), layer(x)[:, kept])
    lost, kept = [1, 4], [0, 2, 3, 5]
    if kind.get('pos_embed') != 'sincos':  # whose waves are added to the channels there are
        pruned = AugmentedConvPruner().prune_in_channels(copy.deepcopy(layer), lost)
        torch.testing.assert_close(pruned(x[:, kept]), layer(x.index_fill(1, torch.tensor(lost), 0)))
        assert pruned.attn is None or pruned.attn.attention_map(x[:, kept]).shape == (2, 2, 35, 35)


@pytest.mark.parametrize('name', ['aa_simplecnn.cifar100', 'laa_simplecnn.cifar100'])
def test_thirty_percent(name):
    model = timm.create_model(name, pretrained=True).eval()
    before = {n: m.out_channels for n, m in model.named_modules() if isinstance(m, AugmentedConv2d)}
    parameters = sum(p.numel() for p in model.parameters())
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    prune(model, x[:1], 0.3, keep=[model.get_classifier()])
    after = {n: m.out_channels for n, m in model.named_modules() if isinstance(m, AugmentedConv2d)}
    assert after == {n: int(0.7 * channels) for n, channels in before.items()}
    assert sum(p.numel() for p in model.parameters()) < 0.65 * parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        losses.append(F.cross_entropy(model(x), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses[1] < losses[0]
