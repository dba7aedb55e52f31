"""The body that the CIFAR networks share: stem, stages of blocks, norm and classifier, with timm's methods."""
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import checkpoint_seq

# not exported by timm: the one of its private modules that is imported
from timm.models._features import feature_take_indices
from torch import nn

from aa_models.data.cifar100 import CIFAR100_MEAN, CIFAR100_STD
from aa_models.errors import InputError
from aa_models.layers import GridAttention

from ._augmented import rel_table_names, reset_parameters


class StagedNet(nn.Module):
    """Networks of the form stem → stages → norm → classifier.

    Subclasses build the parts on the `building_device`, augment some of them and call `materialize` at the end.

    Args:
        stem: First layers, at the resolution of the input.
        stages: For each stage its blocks.
        channels: Output channels of the stem and of each stage.
        reductions: Input pixels to one pixel of the stem's and of each stage's output, along each axis.
        norm: What follows the last stage.
        num_classes: Number of classes, 0 for none.
        in_chans: Channels of the input.
        global_pool: Pooling before the classifier, '' for none.
        drop_rate: Dropout probability before the classifier.
        device: Of the parts.
    """

    def __init__(
            self, stem: nn.Module, stages: Sequence[Sequence[nn.Module]], channels: Sequence[int],
            reductions: Sequence[int], norm: nn.Module, num_classes: int, in_chans: int, global_pool: str,
            drop_rate: float, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.stem = stem
        self.stages = nn.Sequential(*[nn.Sequential(*blocks) for blocks in stages])
        self.norm = norm
        self.num_features = channels[-1]
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, device=device, dtype=dtype)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        modules = ['stem'] + [f'stages.{i}' for i in range(len(stages))]
        self.feature_info: list[dict[str, Any]] = [
            dict(num_chs=chs, reduction=reduction, module=module)
            for chs, reduction, module in zip(channels, reductions, modules)]

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw all weights anew, convolutions as timm's ResNet does; fills a model after `to_empty` too."""
        reset_parameters(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        reset_parameters(self, GridAttention)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay."""
        return rel_table_names(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Patterns that group the parameters by depth, by stage (`coarse`) or by block."""
        blocks = r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)'
        return dict(stem=r'^stem', blocks=[(blocks, None), (r'^norm', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place; the pooling stays where `global_pool` is None."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def forward_intermediates(
            self, x: torch.Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
            output_fmt: str = 'NCHW', intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Features of the network and of its stem and stages on the way.

        Args:
            x: Images (B, in_chans, H, W).
            indices: The last n for an int, those listed, or all of them for None; 0 is the stem.
            norm: Apply the last norm to the last stage's output too.
            stop_early: Stop after the last feature asked for.
            output_fmt: `'NCHW'` is the only one.
            intermediates_only: Return the intermediate features alone.
        """
        if output_fmt != 'NCHW':
            raise InputError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        num_stages = len(self.stages)
        x = self.stem(x)
        intermediates = [x] if 0 in take_indices else []
        for i, stage in enumerate(self.stages[:max_index] if stop_early else self.stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in take_indices:
                intermediates.append(self.norm(x) if norm and i == num_stages else x)
        if intermediates_only:
            return intermediates
        return (x if stop_early and max_index < num_stages else self.norm(x)), intermediates

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """Remove what the intermediate features asked for do not need.

        Args:
            indices: As for `forward_intermediates`.
            prune_norm: Remove the last norm.
            prune_head: Remove the classifier, which is done in any case where stages are removed.

        Returns:
            The indices kept.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        ends_early = max_index < len(self.stages)
        self.stages = self.stages[:max_index]
        if prune_norm or ends_early:
            self.norm = nn.Identity()
        if ends_early:
            self.num_features = self.feature_info[max_index]['num_chs']
            self.head_hidden_size = self.num_features
        if prune_head or ends_early:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> features (B, num_features, H / r, W / r)."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x, flatten=True)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features -> logits (B, num_classes), or the pooled features with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    """The cfg that networks of this form for CIFAR-100 have in common."""
    return {
        'num_classes': 100, 'input_size': (3, 32, 32), 'pool_size': (8, 8), 'crop_pct': 1.0, 'interpolation': 'bicubic',
        'mean': CIFAR100_MEAN, 'std': CIFAR100_STD, 'classifier': 'head.fc', 'license': 'apache-2.0', **kwargs}
