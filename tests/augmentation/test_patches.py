"""Inputs and outputs at some pixels of a convolution: the convolution itself says what belongs together."""
import pytest
import torch
from torch import nn

from aa_models.augmentation.patches import can_read_patches, input_patches, output_pixels


@pytest.mark.parametrize('images', [8, 1000])  # every pixel, and a few
@pytest.mark.parametrize('args', [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=1),
    dict(kernel_size=(3, 5), stride=(2, 1), padding=(0, 2)),
    dict(kernel_size=3, stride=2, padding=1, bias=False),
    dict(kernel_size=(2, 3), dilation=(1, 2), stride=(1, 3), padding=(1, 3)),
])
def test_filters_times_inputs_are_the_outputs(args, images):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 6, **args).double(), torch.randn(8, 4, 13, 11, dtype=torch.float64)
    y = conv(x)
    inputs, outputs = input_patches(x, conv, images), output_pixels(y, conv, images)
    assert can_read_patches(conv) and inputs.shape[:2] == outputs.shape[:2]
    pixels = y[0, 0].numel()
    assert outputs.shape[1] == min(pixels, -(-10 * inputs.shape[2] // images))
    expected = inputs @ conv.weight.flatten(1).T + (0 if conv.bias is None else conv.bias)
    torch.testing.assert_close(outputs, expected)


def test_padding_of_other_kinds_is_not_known():
    assert not can_read_patches(nn.Conv2d(4, 4, 3, padding='same'))
    assert not can_read_patches(nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'))
