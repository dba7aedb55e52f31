"""Attention-augmented convolutional networks for timm: importing this package registers its models."""
from typing import TYPE_CHECKING, Any

from .cli import end_at_interrupts, is_command_line

__all__ = ['attention_maps', 'augment', 'fold_batch_norms']
__version__ = '0.1.0'

if TYPE_CHECKING or not is_command_line():
    from . import models
    from .analysis.maps import attention_maps
    from .augmentation.conversion import augment
    from .models.folding import fold_batch_norms
else:
    end_at_interrupts()

    # `aa-models --help` need not wait for torch: the commands import what they use, and with it the models.
    def __getattr__(name: str) -> Any:
        """Import a public function when it is first asked for."""
        if name not in __all__:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        from . import models
        from .analysis.maps import attention_maps
        from .augmentation.conversion import augment
        from .models.folding import fold_batch_norms
        return {'attention_maps': attention_maps, 'augment': augment, 'fold_batch_norms': fold_batch_norms}[name]
