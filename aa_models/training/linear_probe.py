"""A classifier that starts as a linear probe: fitted to the features as they are, before any other layer learns.

From random outputs the first updates of fine-tuning distort what the features know; from fitted ones they need not
(Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv 2202.10054).
"""
import logging
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from aa_models.device import autocast
from aa_models.errors import DivergenceError, InputError
from aa_models.models.create import classifier_of, num_classes_of

from .loaders import data_config_of, make_eval_loader
from .loop import Trainer
from .progress import Progress
from .splits import at_most, choose_evenly

_logger = logging.getLogger(__name__)

MOST_PICTURES = 50_000  # bounds memory and time; a linear classifier gains little from more
PENALTIES = 1e-3, 1e-2, 1e-1
_STEPS = 100  # of L-BFGS, at most


def check_probe(model: nn.Module, dataset: Any) -> None:
    """Refuse what no linear probe can be made for.

    Raises:
        InputError: The network ends in something else than a linear layer, or the dataset has no random access.
    """
    classifier = classifier_of(model)
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        raise InputError('linear_probe = True needs a network whose classifier is a linear layer with a bias, not '
                         f'{classifier}')
    if isinstance(dataset, IterableDataset):
        raise InputError('linear_probe = True needs a dataset with random access, which streams do not have')


def start_from_probe(trainer: Trainer) -> None:
    """Fit the classifier to the training pictures, seen as in validation; of several processes, each does the same.

    Args:
        trainer: Before its `start`, with what `check_probe` takes.
    """
    features, labels = _features(trainer)
    weight, bias = fit_classifier(features, labels, num_classes_of(trainer.model), trainer.recipe.seed)
    classifier = cast(nn.Linear, classifier_of(trainer.model))
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)
    trainer.start_average()


def fit_classifier(
        features: torch.Tensor, labels: torch.Tensor, num_classes: int, seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression of labels on features, with that of `PENALTIES` that does best on a fifth of them held out.

    Args:
        features: (N, F).
        labels: (N,), integers below `num_classes`.
        num_classes: Outputs.
        seed: Chooses the fifth.

    Returns:
        Weight (num_classes, F) and bias (num_classes,), fitted to all N.

    Raises:
        DivergenceError: A feature is not finite.
    """
    if not torch.isfinite(features).all():
        raise DivergenceError('linear_probe: the features of a training picture are infinite or not a number')
    var, mean = torch.var_mean(features, 0, correction=0)
    # One unit for all. In units of its own a feature that hardly ever changes would get a weight of hundreds, and throw
    # the outputs about as soon as it does change.
    unit = var.mean().sqrt() if var.any() else var.new_ones(())
    scaled = (features - mean) / unit
    held_out = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    held_out[choose_evenly(list(range(len(labels))), labels.tolist(), len(labels) // 5, seed)] = True
    penalty = PENALTIES[len(PENALTIES) // 2]
    if held_out.any():
        logits = {candidate: F.linear(scaled[held_out], *_fit(
            scaled[~held_out], labels[~held_out], num_classes, candidate)) for candidate in PENALTIES}
        penalty = min(PENALTIES, key=lambda candidate: float(F.cross_entropy(logits[candidate], labels[held_out])))
        right = (logits[penalty].argmax(1) == labels[held_out]).float().mean()
        _logger.info(f'a linear probe fitted to four fifths of {len(labels)} training pictures is right for '
                     f'{100 * right:.1f} % of the others (penalty {penalty:g}); the classifier starts from one of all')
    weight, bias = _fit(scaled, labels, num_classes, penalty)
    return weight / unit, bias - weight @ (mean / unit)


def _fit(
        features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalty: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the least cross-entropy plus half the penalty times the squared weights."""
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn='strong_wolfe')

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


@torch.no_grad()
def _features(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """What reaches the classifier, (N, F) in float32, and the labels (N,)."""
    recipe, model, device = trainer.recipe, trainer.model, trainer.process.device
    config = data_config_of(model, recipe)
    pictures = at_most(MOST_PICTURES, trainer.train_loader.dataset, 'linear_probe', recipe)
    loader = make_eval_loader(pictures, recipe, config, device)
    progress = Progress('linear probe', len(loader), every=trainer.log_seconds, show=trainer.process.rank == 0)
    features, labels = [], []
    model.eval()
    handle = classifier_of(model).register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float()))
    try:
        for images, targets in loader:
            if recipe.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast(device, recipe.amp is True, recipe.amp_dtype):
                model(images)
            labels.append(targets)
            progress.step(len(images))
    finally:
        handle.remove()
        progress.bar.close()
    return torch.cat(features), torch.cat(labels)
