"""Multiply-accumulates, counted by hand and for each module."""
import timm
import torch

from aa_models.analysis.macs import count_macs, count_macs_by_module, in_giga


def test_macs_of_a_layer_by_hand():
    convolution = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
    layers = torch.nn.Sequential(convolution, torch.nn.Flatten(), torch.nn.Linear(128, 5))
    assert count_macs(layers, (3, 8, 8)) == 4 * 4 * 8 * 27 + 128 * 5


def test_macs_count_attention_in_full():
    plain, augmented = (
        timm.create_model('aa_simplecnn', device='meta', dk=16, dv=8, num_heads=2, attn_stages=(True, stage))
        for stage in (False, True))
    positions, inputs, dk, dv = 8 * 8, 128, 16, 8  # of the second stage
    convolution = positions * inputs * 9 * dv  # of the channels that attention takes over
    projections = positions * (inputs * (2 * dk + dv) + dv * dv)
    products = positions * (positions * (dk + dv) + (8 + 8) * dk)  # keys and values, then rows and columns
    assert count_macs(augmented) - count_macs(plain) == projections + products - convolution
    assert augmented.stages[1][1].conv.attn.fused_attn == timm.layers.use_fused_attn()


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
    # a module of the model's own class is another module
    Net = torch.nn.Sequential
    nested = Net(Net(torch.nn.Linear(3, 5)), torch.nn.Linear(5, 2))
    assert count_macs_by_module(nested, (4, 4, 3)) == {'': 16 * 25, '0': 16 * 15, '0.0': 16 * 15, '1': 16 * 10}
