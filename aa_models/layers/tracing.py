"""Who else looks on while a layer runs: transforms of `torch.func`, tracers and exporters."""
from typing import Any, cast

import torch
from torch import fx, nn
from torch.autograd import forward_ad


def is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Whether `torch.func` (`vmap`, `grad`, `jvp`, …) or forward-mode differentiation is at work.

    Then only torch's own operators may run, for which it has the rules. torch tells by no public function whether a
    transform is active; this private one is what its own `autograd.Function` calls.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def is_recorded() -> bool:
    """Whether operators are recorded for a program that may run without this package: traced or exported."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def as_one_node(module: nn.Module, x: fx.Proxy) -> Any:
    """Have torch.fx record the call of a module, into which it cannot look: what runs there depends on the input."""
    tracer = cast(fx.Tracer, x.tracer)
    return tracer.create_proxy('call_module', tracer.path_of_module(module), (x,), {})
