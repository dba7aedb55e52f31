"""Multiply-accumulates, counted by hand and for each module."""
import timm
import torch

from aa_models.analysis.macs import count_macs, count_macs_by_module, in_giga


def test_macs_of_a_known_network():
    assert in_giga(count_macs(timm.create_model('resnet50', device='meta'))) == '4.09'  # 8.2 GFLOPs in the paper


def test_macs_of_each_module():
    model = timm.create_model('aa_simplecnn', device='meta')
    macs = count_macs_by_module(model)
    assert macs[''] == count_macs(model) == sum(macs[name] for name, _ in model.named_children() if name in macs)
    assert macs['stem.conv'] == macs['stem'] == 32 * 32 * 3 * 9 * 32
    assert macs['head.fc'] == 128 * 100 and 'norm' not in macs
    layer = macs['stages.0.1.conv']
    assert layer == macs['stages.0.1.conv.conv'] + macs['stages.0.1.conv.attn']
    assert model.stages[0][1].conv.attn.fused_attn == timm.layers.use_fused_attn()  # as before it was counted
    # a module of the model's own class is another module
    Net = torch.nn.Sequential
    nested = Net(Net(torch.nn.Linear(3, 5)), torch.nn.Linear(5, 2))
    assert count_macs_by_module(nested, (4, 4, 3)) == {'': 16 * 25, '0': 16 * 15, '0.0': 16 * 15, '1': 16 * 10}


def test_macs_of_a_network_of_grey_pictures():
    """Its cfg still says three channels."""
    grey, colour = (timm.create_model('resnet18', in_chans=channels) for channels in (1, 3))
    assert count_macs(colour) - count_macs(grey) == 2 * 49 * 64 * 112 ** 2
