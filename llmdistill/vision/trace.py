"""Which module's output goes where in a network."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn


def graph_of(net: nn.Module) -> fx.Graph | None:
    """The calls of one forward pass, None where they depend on the values of tensors."""
    try:
        return fx.Tracer().trace(net)
    except Exception:  # whatever the forward of someone else's module does with a stand-in for its input
        return None


def called(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, None where it calls something else."""
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def num_calls(net: nn.Module, graph: fx.Graph) -> Counter[nn.Module | None]:
    """How often each module is called in one pass."""
    return Counter(called(net, node) for node in graph.nodes)
