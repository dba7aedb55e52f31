"""A step of training a layer under bfloat16 autocast, for the tests of its gradients."""
import torch


def trained(conv, x, output_gradient, amp=True):
    """Output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        output = conv(x)
    output.backward(output_gradient.to(output.dtype))
    return output, x.grad, *(parameter.grad for parameter in conv.parameters())
