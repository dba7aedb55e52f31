"""Whether weights fit a model and are numbers."""
from collections.abc import Callable, Container

import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from aa_models.errors import WeightsError

StateDict = dict[str, Tensor]
FilterFn = Callable[[StateDict, nn.Module], StateDict]


def checked_filter(filter_fn: FilterFn | None, cfg: PretrainedCfg, new_head: bool, new_stem: bool) -> FilterFn:
    """Add to a filter the check that its result is this model's.

    timm loads non-strictly as soon as the number of classes differs, and a foreign file then leaves the whole model at
    its random start without a word. The tensors that timm adapts or drops by itself are not compared.
    """
    classifiers = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier or ())
    adapted = (*(classifiers if new_head else ()), *([cfg.first_conv] if new_stem else ()))
    left_to_timm = {f'{name}.{kind}' for name in adapted for kind in ('weight', 'bias')}

    def checked(state_dict: StateDict, model: nn.Module) -> StateDict:
        state_dict = filter_fn(state_dict, model) if filter_fn else state_dict
        faults = misfits(state_dict, model, left_to_timm) + [
            f'{name}: the file has {len(state_dict[name])} classes, the config says {cfg.num_classes}'
            for name in (f'{classifier}.weight' for classifier in classifiers)
            if name in left_to_timm and name in state_dict and len(state_dict[name]) != cfg.num_classes]
        check_fit(faults, f'the weights do not fit {cfg.architecture} as asked for')
        check_finite(state_dict, f'the weights of {cfg.architecture}')
        return state_dict

    return checked


def misfits(state_dict: StateDict, model: nn.Module, exempt: Container[str] = ()) -> list[str]:
    """What in a state dict is not of a model's names and shapes, in words; tensors named in `exempt` may differ."""
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return [
        f'{name}: the file has {found.get(name, "none")}, the model {wanted.get(name, "none")}'
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name) and name not in exempt
        and not (name.endswith('num_batches_tracked') and name not in found)  # torch starts these at 0 by itself
        and not (name.endswith('.q_const') and (name in found) != (name in wanted))  # as the file
    ]


def check_fit(faults: list[str], what: str) -> None:
    """Raise a `WeightsError` with the first of the faults, if there are any."""
    if faults:
        more = f'; and {len(faults) - 5} more' if len(faults) > 5 else ''
        raise WeightsError(f'{what}: {"; ".join(faults[:5])}{more}')


def check_finite(tensors: StateDict, source: str) -> None:
    """Refuse weights with which every answer would be wrong.

    Raises:
        WeightsError: A tensor holds an infinite number or something that is none.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise WeightsError(f'{source}: {name} is infinite or not a number')
