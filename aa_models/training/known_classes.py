"""A new classifier that starts from what the pretrained one knew of the same classes."""
import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from aa_models.data.labels import known_outputs
from aa_models.models.create import cfg_of, classifier_of, num_classes_of

_logger = logging.getLogger(__name__)


@torch.no_grad()
def keep_known_classes(model: nn.Module, names: Sequence[str], make: Callable[..., nn.Module]) -> int:
    """Copy weights and biases of those outputs whose classes the pretrained network has, too; the others start anew.

    Where it has none of them, the classifier stays as timm made it.

    Args:
        model: Made by timm with pretrained weights, of one output for each name, or more.
        names: The classes, in the order of their labels, as `aa_models.data.labels.known_outputs` takes them.
        make: Makes such a network, from its arguments `pretrained` and `num_classes`.

    Returns:
        The number of classes kept.
    """
    cfg, count, new = cfg_of(model), num_classes_of(model), classifier_of(model)
    known = known_outputs(names, cfg, cfg['num_classes'])
    if not known:
        return 0
    if not isinstance(new, (nn.Linear, nn.Conv2d)):
        _logger.info('the classes start anew: the classifier has no weights for each of them')
        return 0
    if count == cfg['num_classes']:  # timm has taken the whole classifier over, with that of other classes
        new.load_state_dict(classifier_of(make(num_classes=count)).state_dict())
    old = classifier_of(make(pretrained=True))
    for name, tensor in new.named_parameters():
        tensor[list(known)] = old.get_parameter(name)[list(known.values())].to(tensor.device)
    _logger.info(f'{len(known)} of {len(names)} classes are known to the pretrained weights and start from these')
    return len(known)
