"""Faults of the torch at hand, found by trying: where it has one, the tests that meet it say so and are skipped."""
from functools import cache

import pytest
import torch


@cache
def skip_where_compiling_is_called_exporting() -> None:
    """Compiled models then compute attention as exported ones do, rightly but in another way."""
    @torch.compile(backend='eager')
    def asks(x: torch.Tensor) -> torch.Tensor:
        return x + int(torch.compiler.is_exporting())

    if asks(torch.zeros(1)).item() != 0:
        pytest.skip(f'torch {torch.__version__} says is_exporting() when it compiles')


@cache
def skip_where_pooling_has_one_size() -> None:
    """No ResNet of timm's can be exported for any size either."""
    sizes = {2: torch.export.Dim('height', min=4, max=64), 3: torch.export.Dim('width', min=4, max=64)}
    try:
        torch.export.export(torch.nn.MaxPool2d(3, 2, 1), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=(sizes,))
    except (RuntimeError, ValueError, AssertionError):
        pytest.skip(f'torch {torch.__version__} exports no pooling of any size')
