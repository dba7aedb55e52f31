"""SAGAN's attention layer: a map plus γ times what it attends to.

Self-Attention Generative Adversarial Networks (arXiv 1805.08318), section 3. With the 1×1 convolutions g, f, h and v as
queries, keys, values and output: y_j = γ · v(Σ_i β_ji h(x_i)) + x_j, β_ji = softmax_i(g(x_j) · f(x_i)).
"""
from typing import Any

import torch
from timm.layers import LayerType, create_act_layer, register_notrace_module
from torch import nn

from aa_models.errors import InputError, InputTypeError

from .attention_args import AttentionArgs
from .grid_attention import check_shape
from .head_dims import is_int, is_number
from .softmax_attention import SoftmaxAttention


def _make_act(act_layer: LayerType | None) -> nn.Module:
    """The activation by name or class; None is none."""
    try:
        act = create_act_layer(act_layer)
    except KeyError:
        raise InputError(f"act_layer must be a name that timm knows, such as 'relu', got {act_layer!r}") from None
    except TypeError as e:  # a function, or a module that exists already
        raise InputTypeError(
            f"act_layer must be a name such as 'relu', a class of modules or None, got {act_layer!r}") from e
    return nn.Identity() if act is None else act


@register_notrace_module
class SelfAttentionConv2d(nn.Module):
    """Self-attention over a map, added to it: y = act(shortcut(x) + γ · Attention(x)).

    A map keeps its height and width, and any size works. At γ = 0 the layer is its shortcut, the identity where the
    channels stay, so it can be put into a trained network; γ is learned. The layer has no positions: it is
    permutation-equivariant.

    Logits are divided by √dim_head, as usual today; SAGAN does not scale them. Both are the same family of functions:
    to load SAGAN's own weights, multiply its query convolution by √dim_head.

    `attention_map(x)` gives the scores; `forward` holds no (H * W)² tensor, except with `TIMM_FUSED_ATTN=0`.

    Source: Self-Attention Generative Adversarial Networks (arXiv 1805.08318), section 3.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, by default those of the input; at any other number the shortcut is a 1×1
            convolution.
        num_heads: Number of heads; the paper has one.
        dim_head: Channels of the queries, the keys and the values of each head; by default ⌊in_channels / 8⌋, at least
            1, which is the paper's for its one head. More heads add channels, they do not share these.
        act_layer: Activation of the sum, a name that timm knows or a class; None for none, as in the paper.
        gamma: What γ starts at.
        attn_drop: Dropout probability of the attention weights.
        bias: Learn biases in the 1×1 convolutions.

    Raises:
        ValueError: A number is impossible, `act_layer` is an unknown name, or an input has the wrong rank or channels.
        TypeError: `act_layer` or `gamma` is of the wrong kind.
    """

    def __init__(
            self, in_channels: int, out_channels: int | None = None, num_heads: int = 1, dim_head: int | None = None,
            act_layer: LayerType | None = None, gamma: float = 0.0, attn_drop: float = 0.0, bias: bool = True,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        numbers: dict[str, Any] = dict(
            in_channels=in_channels, out_channels=out_channels, num_heads=num_heads, dim_head=dim_head)
        for name, value in numbers.items():
            if value is None and name in ('out_channels', 'dim_head'):
                continue
            if not is_int(value) or value < 1:
                raise InputError(f'{name} must be an int, at least 1, got {value!r}')
        if not is_number(gamma):
            raise InputTypeError(f'gamma must be a number, got {gamma!r}')
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.num_heads = num_heads
        self.dim_head = max(1, in_channels // 8) if dim_head is None else dim_head
        self.init_gamma = float(gamma)
        depth = num_heads * self.dim_head
        args = AttentionArgs(depth, depth, num_heads, pos_embed=None, attn_drop=attn_drop)
        self.attn = SoftmaxAttention(in_channels, args, bias=bias, out_channels=self.out_channels, **dd)
        self.shortcut = nn.Identity() if self.out_channels == in_channels else nn.Conv2d(
            in_channels, self.out_channels, 1, bias=bias, **dd)
        # one axis, because FSDP shards no parameter without
        self.gamma = nn.Parameter(torch.full((1,), self.init_gamma, **dd))
        self.act = _make_act(act_layer).to(**dd)

    def reset_parameters(self) -> None:
        """Draw all weights anew; γ starts again where it started."""
        for layer in (self.attn, self.shortcut, self.act):
            if reset := getattr(layer, 'reset_parameters', None):
                reset()
        nn.init.constant_(self.gamma, self.init_gamma)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend and add.

        Args:
            x: (B, in_channels, H, W)

        Returns:
            (B, out_channels, H, W)
        """
        if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
            check_shape(x, self.in_channels, 2)
        attended = self.attn(x)
        # under autocast a float32 γ would make the whole map float32
        return self.act(self.shortcut(x) + self.gamma.type_as(attended) * attended)

    def attention_map(self, x: torch.Tensor) -> torch.Tensor:
        """The attention scores of an input, in full.

        Args:
            x: (B, in_channels, H, W)

        Returns:
            (B, num_heads, H * W, H * W), rows (queries) summing to 1, positions in row-major order.

        Raises:
            ValueError: `x` has the wrong rank or channels.
        """
        return self.attn.attention_map(x)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}, dim_head={self.dim_head}'
