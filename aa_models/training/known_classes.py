"""A new classifier that starts from what the pretrained one knew of the same classes."""
import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from aa_models.data.labels import as_words, outputs_by_words
from aa_models.models.create import cfg_of

_logger = logging.getLogger(__name__)


@torch.no_grad()
def keep_known_classes(model: nn.Module, names: Sequence[str], make_pretrained: Callable[[], nn.Module]) -> int:
    """Copy weights and biases of those outputs whose classes the pretrained network has, too; the others stay.

    Args:
        model: Of one output for each name, or more.
        names: The classes, in the order of their labels: names of the pretrained classes, or words that describe one.
        make_pretrained: Makes the network with all of its pretrained outputs; called where there is something to keep.

    Returns:
        The number of classes kept.
    """
    cfg = cfg_of(model)
    known = outputs_by_words(cfg, cfg['num_classes'])
    kept = {label: known[as_words(name)] for label, name in enumerate(names) if as_words(name) in known}
    if not kept:
        return 0
    new, old = (network.get_classifier() for network in (model, make_pretrained()))  # type: ignore[operator]  # timm's
    if not isinstance(old, (nn.Linear, nn.Conv2d)):
        _logger.info('the classes start anew: the classifier has no weights for each of them')
        return 0
    for name, tensor in new.named_parameters():
        tensor[list(kept)] = old.get_parameter(name)[list(kept.values())].to(tensor.device)
    _logger.info(f'{len(kept)} of {len(names)} classes are known to the pretrained weights and start from these')
    return len(kept)
