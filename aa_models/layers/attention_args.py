"""The arguments of the attention, one object on their way from `timm.create_model` and `augment` to the layer."""
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from aa_models.errors import InputError, InputTypeError

from .head_dims import is_int, is_number

_POS_EMBED = {'softmax': ('rel', 'sincos', 'coord', None), 'linear': ('sincos', 'coord', None)}

F = TypeVar('F', bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class AttentionArgs:
    """The attention's arguments of `AugmentedConv2d`, where each is explained.

    A new one needs three entries: here, with its check; in the signature and the docstring of the layer; and where the
    attention uses it. Networks, `augment` and recipes pass on whatever fields there are.

    Raises:
        InputError: A value is impossible. `dk`, `dv` and `num_heads` are checked where the output channels are known.
    """
    dk: int | float = 0.2
    dv: int | float = 0.1
    num_heads: int = 8
    attention: str = 'softmax'
    pos_embed: str | None = 'rel'
    attn_pool: int = 1
    attn_drop: float = 0.
    attn_init: str = 'local'

    def __post_init__(self) -> None:
        if self.pos_embed in (None, 'none'):  # the word is for `timm.create_model`, which drops arguments that are None
            object.__setattr__(self, 'pos_embed', '')  # from here on the one spelling; TorchScript can compare it
        if not isinstance(self.attention, str) or self.attention not in _POS_EMBED:
            raise InputError(f'attention must be one of {tuple(_POS_EMBED)}, got {self.attention!r}')
        possible = _POS_EMBED[self.attention]
        if self.pos_embed not in ('', *possible):
            default = ', the default' if self.pos_embed == AttentionArgs.pos_embed else ''
            raise InputError(f'pos_embed with attention={self.attention!r} must be one of {(*possible, None)}, '
                             f'got {self.pos_embed!r}{default}')
        if not is_int(self.attn_pool) or self.attn_pool < 1:
            raise InputError(f'attn_pool must be an int, at least 1 (no pooling), got {self.attn_pool!r}')
        if not is_number(self.attn_drop) or not 0 <= self.attn_drop <= 1:
            raise InputError(f'attn_drop must be a probability, a number from 0 to 1, got {self.attn_drop!r}')
        if self.attn_init not in ('local', 'global'):
            raise InputError(f"attn_init must be 'local' or 'global', got {self.attn_init!r}")
        for name in ('dk', 'dv', 'num_heads', 'attn_pool', 'attn_drop'):  # JSON and scripts know none of numpy's
            value = getattr(self, name)
            if is_number(value):
                object.__setattr__(self, name, int(value) if is_int(value) else float(value))

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> 'AttentionArgs':
        """Make one of the fields that stand in `kwargs`, and remove them there: the rest is for another constructor."""
        return cls(**{field.name: kwargs.pop(field.name) for field in dataclasses.fields(cls) if field.name in kwargs})

    def replace(self, **changes: Any) -> 'AttentionArgs':
        """Copy with other values.

        Raises:
            InputTypeError: There is no such argument.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise InputTypeError(f'unexpected argument {name!r}; those of the attention are {", ".join(names)}')
        return dataclasses.replace(self, **changes)


def names_attention_args(function: F) -> F:
    """Have `help` and completion name the fields of `AttentionArgs` in place of a function's `**kwargs`."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(AttentionArgs).parameters.values()]
    cast(Any, function).__signature__ = signature.replace(parameters=[*parameters, *fields])
    return function
