"""A run that starts from another run's weights, of the same network or of a narrower or wider one."""
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timm.models import load_state_dict
from timm.utils import load_checkpoint_metadata
from torch import nn

from aa_models.augmentation.narrowing import narrow
from aa_models.augmentation.widening import widen
from aa_models.errors import InputError, NoSuchFileError
from aa_models.models._augmented import checkpoint_filter_fn
from aa_models.models.create import build_model
from aa_models.models.fit import check_finite, check_fit, misfits
from aa_models.schema import checked
from aa_models.zoo import CONFIG, WEIGHTS_FILE

from .checkpoints import newest_whole
from .recipe import Recipe

_LOCAL = 'local-dir:'
_logger = logging.getLogger(__name__)


def start_from(model: nn.Module, source: str) -> None:
    """Fill a network with the weights of a run.

    Relative tables are interpolated to the network's own size, and a plain network's weights fill an augmented one.

    Args:
        model: Of the same names and shapes but for that.
        source: As `find_weights` takes it. Of a checkpoint that holds the weights' moving average, this is taken.

    Raises:
        NoSuchFileError: It does not exist.
        InputError: It holds no weights.
        WeightsError: They do not fit, or are not finite.
    """
    what, file = f'initial_checkpoint = {source!r}', find_weights(source)
    state_dict = checkpoint_filter_fn(read_weights(file, what), model)
    check_fit(misfits(state_dict, model), f'{what} does not fit the model')
    check_finite(state_dict, what)
    model.load_state_dict(state_dict)
    _logger.info(f'starts from the weights in {file}')


def widen_from(model: nn.Module, source: str, seed: int) -> None:
    """Fill a network with the function of a narrower one of the same form (`aa_models.augmentation.widening`).

    Args:
        model: The wide network.
        source: As `find_weights` takes it; what form its network has must stand there, too: in a run's checkpoint, or
            in the `config.json` beside a `model.safetensors`.
        seed: Of how unevenly copies are read.

    Raises:
        NoSuchFileError: It does not exist.
        InputError: It holds no weights, does not say of which network, or the model is no wider form of that.
        WeightsError: The weights do not fit their own network, or are not finite.
    """
    _resize(model, source, 'widen', partial(widen, seed=seed))


def narrow_from(model: nn.Module, source: str) -> None:
    """Fill a network with what a wider one of the same form has become (`aa_models.augmentation.narrowing`).

    Args:
        model: The narrow network.
        source: As for `widen_from`, which raises the same errors.
    """
    _resize(model, source, 'narrow', narrow)


def _resize(model: nn.Module, source: str, how: str, function: Callable[[nn.Module, nn.Module], object]) -> None:
    what, file = f'initial_checkpoint = {source!r}', find_weights(source)
    if file.name == WEIGHTS_FILE and file.with_name(CONFIG).is_file():
        other = build_model(f'{_LOCAL}{file.parent}', pretrained=True)
    else:
        recipe = _recipe_of(file, f'{what} with {how}')
        name, arguments = recipe.network
        other = build_model(name, num_classes=recipe.num_classes, **arguments)
        start_from(other, str(file))
    try:
        function(other, model)
    except InputError as error:
        raise InputError(f'{what} with {how}: {error}') from error
    before, after = (sum(p.numel() for p in network.parameters()) for network in (other, model))
    _logger.info(f'{how}ed from {before:,} to {after:,} parameters')


def _recipe_of(file: Path, what: str) -> Recipe:
    """The recipe in a checkpoint of a run."""
    try:
        args = vars(load_checkpoint_metadata(file)['args'])
    except Exception as error:  # a file of another kind fails in many ways
        raise InputError(f'{what}: {file} does not say of which network its weights are; possible are the '
                         f'checkpoint of a run and a folder with {CONFIG} and {WEIGHTS_FILE}') from error
    return checked(Recipe, args, f'recipe in {file}')


def find_weights(source: str) -> Path:
    """The file that holds the weights.

    Args:
        source: A file, or with or without `local-dir:` a folder: a run's output directory, whose last epoch counts, or
            one with a `model.safetensors`.

    Raises:
        NoSuchFileError: It does not exist.
        InputError: It is a folder without weights.
    """
    path = Path(source.removeprefix(_LOCAL))
    what = f'initial_checkpoint = {source!r}'
    if not path.exists():
        raise NoSuchFileError(f'{what} does not exist')
    if path.is_file():
        return path
    found = newest_whole(path)
    if found is None and (path / WEIGHTS_FILE).is_file():
        found = path / WEIGHTS_FILE
    if found is None:
        raise InputError(f'{what} is a folder without weights: there is neither a whole checkpoint (*.pth.tar) of a '
                         f'run in it nor a {WEIGHTS_FILE}')
    return found


def read_weights(file: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint or a safetensors file, in float32 where they are of lower precision.

    Args:
        file: Nothing in it is run.
        what: Words for it, for the error.

    Raises:
        InputError: It is no such file.
    """
    try:
        tensors = load_state_dict(str(file), use_ema=True)
    except Exception as error:  # broken and foreign files fail in many ways
        raise InputError(f'{what} cannot be read: {file} is no checkpoint ({type(error).__name__}: {error})') from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise InputError(f'{what} cannot be read: {file} holds no state dict')
    return {
        name: tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor
        for name, tensor in tensors.items()}
