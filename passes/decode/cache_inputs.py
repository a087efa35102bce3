"""Inputs of a decode graph for what a cache holds: placeholders with a new size on one axis, and their specs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

from ..graph.edit import shape_of, stamp, tensor_value
from ..graph.signature import InputSpec, read_axes, signature_of

_EXAMPLE = 5  # rows of a cache, for a symbol that needs a size to start from


class CacheInputs:
    """Adds the inputs of one graph, behind those that it has.

    Args:
        like: any node with a symbolic shape; sizes: how many different numbers of rows S there are.
    """

    def __init__(self, graph_module: fx.GraphModule, like: fx.Node, sizes: int, origin: str) -> None:
        self.graph_module, self.graph, self._origin = graph_module, graph_module.graph, origin
        self.sizes = [_new_size(like, number) for number in range(sizes)]
        self._specs: list[InputSpec] = []

    def add(self, name: str, like: fx.Node, axis: int | None = None, group: int = 0) -> fx.Node:
        """An input shaped like a value of the graph, with S of the group on `axis`."""
        value, shape = tensor_value(like), [*shape_of(like)]
        if axis is not None:
            shape[axis] = self.sizes[group]
        with self.graph.inserting_after(self.graph.find_nodes(op="placeholder")[-1]):
            node = stamp(self.graph.placeholder(name.replace(".", "_")), origin=self._origin, like=like)
        with value.fake_mode:  # type: ignore[attr-defined]  # symbolic values are fake
            node.meta["val"] = value.new_empty(shape)
        batch = signature_of(self.graph_module).inputs[0].axes[0]
        names = {str(size): f"past_{number}" for number, size in enumerate(self.sizes)}
        axes = read_axes(node.meta["val"], {}, {str(shape[0]): batch.symbol, **names})
        self._specs.append(InputSpec(name, value.dtype, (batch, *axes[1:])))
        return node

    def sign(self, outputs: tuple[str, ...], *, without: tuple[str, ...] = ()) -> None:
        """Say in the graph's signature what it takes and answers now."""
        signature = signature_of(self.graph_module)
        kept = tuple(spec for spec in signature.inputs if spec.name not in without)
        self.graph_module.meta["signature"] = replace(
            signature, inputs=(*kept, *self._specs), outputs=outputs, answer_type=None
        )


def _new_size(like: fx.Node, number: int) -> torch.SymInt:
    """S of a group: a new symbol."""
    mode = tensor_value(like).fake_mode  # type: ignore[attr-defined]  # symbolic values are fake
    context: StatelessSymbolicContext[..., None] = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    fake = mode.from_tensor(
        torch.empty(_EXAMPLE + 2 * number), source=ConstantSource(f"past_{number}"), symbolic_context=context
    )
    size: torch.SymInt = fake.shape[0]
    return size
