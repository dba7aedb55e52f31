"""What bfloat16 autocast slows down is trained in float32."""
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from aa_models.models.depthwise import keep_depthwise_in_float32

WHERE = torch.device('cpu'), 'bfloat16'


def trained(conv, x, amp):
    """Output, and the gradients of input and weight."""
    x = x.clone().requires_grad_()
    conv.weight.grad = None
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        output = conv(x)
        output.float().square().sum().backward()
    return output, x.grad, conv.weight.grad


@pytest.mark.parametrize('kernel, stride', [(5, 1), (3, 2), ((3, 5), 1)])
def test_gradients_are_those_of_float32(kernel, stride):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 16, kernel, stride, groups=8), torch.randn(2, 8, 9, 9)
    output, *gradients = trained(conv, x, amp=False)
    keep_depthwise_in_float32(conv, *WHERE)
    rounded, *found = trained(conv, x, amp=True)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, output.bfloat16(), rtol=0, atol=0)
    for gradient, wanted in zip(found, gradients):  # the result, rounded, is what they begin with
        assert F.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0) > 1 - 1e-5


def test_where_no_gradient_is_computed_all_is_in_bfloat16():
    conv, x = nn.Conv2d(8, 8, 5, groups=8), torch.randn(2, 8, 9, 9)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        alone = conv(x)
        keep_depthwise_in_float32(conv, *WHERE)
        torch.testing.assert_close(conv(x), alone, rtol=0, atol=0)


def test_other_convolutions_have_no_hooks():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 5, groups=2), nn.Conv2d(1, 8, 5))
    keep_depthwise_in_float32(model, *WHERE)
    slow = nn.Conv2d(8, 8, 5, groups=8)
    keep_depthwise_in_float32(slow, torch.device('cpu'), 'float16')
    keep_depthwise_in_float32(slow, torch.device('cuda'), 'bfloat16')
    assert not any(conv._forward_pre_hooks or conv._forward_hooks for conv in (*model, slow))


def test_a_failed_convolution_leaves_autocast_on():
    conv = nn.Conv2d(8, 8, 5, groups=8)
    keep_depthwise_in_float32(conv, *WHERE)
    with torch.autocast('cpu', torch.bfloat16):
        with pytest.raises(RuntimeError, match='channels'):
            conv(torch.randn(2, 7, 9, 9))
        assert torch.is_autocast_enabled('cpu')
    assert not torch.is_autocast_enabled('cpu')


def test_recomputed_in_the_backward_pass():
    """Gradient checkpointing computes the layers again, with the same result."""
    torch.manual_seed(0)
    model = timm.create_model('tf_efficientnet_lite0', num_classes=3).train()
    keep_depthwise_in_float32(model, *WHERE)
    x, gradients = torch.randn(2, 3, 64, 64), []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast('cpu', torch.bfloat16):
            loss = model(x).float().logsumexp(1).sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)
