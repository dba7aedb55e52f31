"""`config.json` of a model's folder or repository: what it must hold before anything is built by it."""
import dataclasses
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from timm.models import PretrainedCfg

from aa_models.errors import InputError, UserError
from aa_models.schema import Float, Int, Positive, Size, checked, nearest, parsed_json

from .memory import check_arguments

Classes = Annotated[Int, Field(ge=0)]
Labels = list[str] | dict[str, str] | None


class _Shared(BaseModel):
    """How pictures are prepared and which layers are first and last."""
    model_config = ConfigDict(extra='allow', allow_inf_nan=False, strict=True)
    input_size: Annotated[list[Size], Field(min_length=3, max_length=3)] | None = None
    mean: list[Float] | None = None
    std: list[Positive] | None = None
    interpolation: str | None = None
    crop_pct: Annotated[Float, Field(gt=0)] | None = None
    crop_mode: str | None = None
    num_classes: Classes | None = None
    classifier: str | list[str] | None = None
    first_conv: str | list[str] | None = None
    tag: str | None = None
    label_names: Labels = None
    label_descriptions: Labels = None


class _Cfg(_Shared):
    """What timm makes a `PretrainedCfg` of; it takes no other keys."""

    @model_validator(mode='after')
    def _known_keys(self) -> '_Cfg':
        known = [field.name for field in dataclasses.fields(PretrainedCfg)]
        for key in (self.model_extra or {}).keys() - known:
            raise ValueError(f'pretrained_cfg: unknown key {key!r}{nearest(key, known)}')
        return self


class _Config(_Shared):
    """The whole file. timm's oldest ones have no `pretrained_cfg`, and its keys stand beside `architecture`."""
    architecture: str
    model_args: dict[str, Any] = {}
    pretrained_cfg: _Cfg = _Cfg()

    @field_validator('model_args')
    @classmethod
    def _possible(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_arguments(value)
        return value

    @model_validator(mode='after')
    def _one_number_of_classes(self) -> '_Config':
        of_weights = self.pretrained_cfg.num_classes if self.num_classes is None else self.num_classes
        built = self.model_args.get('num_classes')
        if None not in (built, of_weights) and built != of_weights:  # timm would draw a new classifier without a word
            raise ValueError(
                f'num_classes = {of_weights!r} and model_args.num_classes = {built!r} must be the same number')
        return self


def read_architecture(file: Path, model: str) -> str:
    """Check a config and return the name of the model that it is for.

    Args:
        file: The `config.json`.
        model: Who has it, for the error.

    Raises:
        InputError: It is no JSON object, or a value in it is impossible. All of them are named.
    """
    try:
        return checked(_Config, parsed_json(file), str(file)).architecture
    except UserError as error:
        raise InputError(f'model = {model!r}: its config cannot be used: {error}') from error
