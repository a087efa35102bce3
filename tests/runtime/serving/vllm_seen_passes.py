"""A pass that shows that it ran in vLLM's compilation: read there by name, on PYTHONPATH of vLLM's processes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

from gatefx.passes.contract import Pass
from gatefx.passes.report import Outcome


@dataclass(frozen=True)
class SwapSums(Pass):
    """a + b → b + a, to the bit; writes how many there were into a file named after `option`."""

    option: str

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        sums = [
            node
            for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
            if all(isinstance(argument, fx.Node) for argument in node.args) and not node.kwargs
        ]
        for node in sums:
            node.args = node.args[::-1]
        products = graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
        seen = {"sums": len(sums), "products": len(products)}
        Path(os.environ["GATEFX_SEEN"], self.option).write_text(json.dumps(seen))
        return Outcome(tuple(node.name for node in sums))


FIRST, SECOND = [SwapSums("first")], [SwapSums("second")]
