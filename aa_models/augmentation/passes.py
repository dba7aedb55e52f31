"""Forward passes of several batches, each taken from module to module, so that a network can be changed on the way."""
import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx, nn


@contextlib.contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode for the time of the body; then each part is in its own again, as frozen ones are."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Passes:
    """Forward passes, one for each batch, that wait before a module and go on from there.

    What is asked for module by module, in the order in which they run, costs one pass in all; only what the rest of the
    network still reads is kept of each batch. Where tracing does not lead to a module, a pass of its own does.

    Args:
        model: In evaluation mode.
        batches: Images (B, C, H, W), on the model's device and of its dtype.
        calls: Of `trace_calls`, of this model.
    """

    def __init__(
            self, model: nn.Module, batches: Sequence[torch.Tensor], calls: Mapping[str, list[fx.Node]] | None,
    ) -> None:
        self.model, self.batches = model, batches
        self.calls = {name: nodes[0] for name, nodes in (calls or {}).items()}
        self.runs: list[_Run] = []
        if self.calls:
            graph = next(iter(self.calls.values())).graph
            self.order = {node: place for place, node in enumerate(graph.nodes)}
            self.runs = [_Run(model, graph, batch) for batch in batches]

    def place(self, name: str) -> int:
        """Where a module stands in the order in which they run, as far as that is known."""
        return self.order[self.calls[name]] if name in self.calls else 0

    def inputs(self, name: str) -> Iterator[torch.Tensor]:
        """What a module gets from each batch. Neither it nor what comes after it has run by then."""
        if name in self.calls:
            return (run.input(self.calls[name]) for run in self.runs)
        return (_seen(self.model, name, batch) for batch in self.batches)


class _Run(fx.Interpreter):
    """A pass of one batch."""

    def __init__(self, model: nn.Module, graph: fx.Graph, batch: torch.Tensor) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.args_iter, self.ahead = iter([batch]), list(reversed(graph.nodes))
        self.last: dict[fx.Node, fx.Node] = {}  # who reads a value last
        for node in self.ahead:
            for value in node.all_input_nodes:
                self.last.setdefault(value, node)

    def input(self, call: fx.Node) -> torch.Tensor:
        """The input of a module's call, with all before it run."""
        while self.ahead[-1] is not call:
            node = self.ahead.pop()
            self.env[node] = self.run_node(node)
            for value in node.all_input_nodes:
                if self.last[value] is node:
                    self.env.pop(value, None)
        return self.env[call.all_input_nodes[0]]


class _Reached(Exception):
    """A forward pass came to the module that was waited for."""


def _seen(net: nn.Module, name: str, batch: torch.Tensor) -> torch.Tensor:
    """The input of a module; neither it nor what comes after it is run."""
    found: list[torch.Tensor] = []

    def stop(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _Reached

    handle = net.get_submodule(name).register_forward_pre_hook(stop)
    try:
        net(batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
