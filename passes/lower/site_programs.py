"""Lowering to one small program a site: what its adapter adds to a layer, for a server that has the layers itself.

    x ─linear(W)─▶ base ─────────────▶ add ─▶ …           program(base, x) → update
     └─A─B─gate(x, base)─▶ update ──────┘            →     (weights of the adapter and its gate within)

Taken from the masked graph of a deployed model, whose meaning the compacted one has. What depends on weights alone is
computed once. A server may hand a program any tokens in any order, so it must be a function of each token by itself.

Refused: sites whose decision reads more than the layer's own input and output (routers that read the whole text, tokens
that are dropped), and models whose layers changed in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx, nn

from ...errors import SiteError
from ..deployed import DeployedModel
from ..graph.edit import get_tensor
from .aten_forms import in_aten
from .dynamic_export import export_program

_TOKENS, _EXAMPLE = 1 << 20, 3
"""The most tokens of one call, and those of the example."""
_ADD, _LINEAR = torch.ops.aten.add.Tensor, torch.ops.aten.linear.default


def site_programs(model: DeployedModel) -> dict[str, torch.export.ExportedProgram]:
    """Site → its program: base (1, N, d_out) and x (1, N, d_in) to the update (1, N, d_out), at the budget in force.

    Raises:
        SiteError: a site whose update is no function of each token.
        CaptureError: an update that cannot be exported.
    """
    module = model.reference_graph
    layers = _layers(module)
    missing = [site.name for site in model.sites if site.name not in layers]
    if missing:
        raise _refused(missing[0], "no linear layer of that name in the masked graph")
    return {
        site.name: _program(_update(module, site.name, layers[site.name]), site.d_in, site.d_out)
        for site in model.sites
    }


def _layers(module: fx.GraphModule) -> Mapping[str, fx.Node]:
    """Layer → its frozen product."""
    products = module.graph.find_nodes(op="call_function", target=_LINEAR)
    weights = {node: node.args[1] for node in products}
    return {
        str(weight.target).removesuffix(".weight"): node
        for node, weight in weights.items()
        if isinstance(weight, fx.Node) and weight.op == "get_attr"
    }


def _update(module: fx.GraphModule, name: str, base: fx.Node) -> fx.GraphModule:
    """A graph of base and x that answers with what is added to base."""
    sums = [node for node in base.users if node.target == _ADD and base in node.args[:2]]
    if len(sums) != 1:
        raise _refused(name, f"{len(sums)} sums on top of the layer")
    update = next(argument for argument in sums[0].args[:2] if argument is not base)
    inputs = {"base": base, "x": base.args[0]}
    return _Extraction(module, name, inputs).run(update)


class _Extraction:
    """Copies the nodes that `update` needs, down to the inputs; those of weights alone become values."""

    def __init__(self, module: fx.GraphModule, name: str, inputs: Mapping[str, object]) -> None:
        self._module, self._name = module, name
        self._root, self._graph = nn.Module(), fx.Graph()
        self._copies = {node: self._graph.placeholder(given) for given, node in inputs.items()}
        self._values: dict[fx.Node, torch.Tensor] = {}

    def run(self, update: object) -> fx.GraphModule:
        if not isinstance(update, fx.Node):
            raise _refused(self._name, f"the sum's other part is {update!r}")
        needed = set(self._needed(update))
        for node in self._module.graph.nodes:
            if node in needed:
                self._copy(node)
        self._graph.output(self._as_node(update))
        return fx.GraphModule(self._root, self._graph)

    def _needed(self, update: fx.Node) -> Iterator[fx.Node]:
        waiting, seen = [update], set(self._copies)
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.op == "placeholder":
                raise _refused(self._name, f"its decision reads {node.target} besides the layer's input and output")
            yield node
            waiting.extend(node.all_input_nodes)

    def _copy(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._values[node] = get_tensor(self._module, str(node.target)).detach()
        elif node.op == "call_function" and all(source in self._values for source in node.all_input_nodes):
            arguments = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
            self._values[node] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]  # a function
        else:
            if node.op == "call_module":
                self._root.add_module(str(node.target), self._module.get_submodule(str(node.target)))
            self._copies[node] = self._graph.node_copy(node, self._as_node)

    def _as_node(self, node: fx.Node) -> fx.Node:
        if node not in self._copies:
            name = f"weight_{len(self._copies)}"
            self._root.register_buffer(name, self._values[node])
            self._copies[node] = self._graph.get_attr(name)
        return self._copies[node]


def _program(update: fx.GraphModule, d_in: int, d_out: int) -> torch.export.ExportedProgram:
    tokens = torch.export.Dim("tokens", min=1, max=_TOKENS)
    example = torch.zeros(1, _EXAMPLE, d_out), torch.zeros(1, _EXAMPLE, d_in)
    program = export_program(in_aten(update), example, ({1: tokens}, {1: tokens}))
    # What tracing left without a reader answers with types, not with tensors, and Dynamo takes no such operator.
    program.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    program.graph_module.recompile()
    return program


def _refused(name: str, given: str) -> SiteError:
    return SiteError(
        "The adapter's update is no function of each token, so no server can be handed it layer by layer.",
        given=f"{name}: {given}",
        expected="a gate that reads the layer's own input and output, as gatera's and tspeft's do",
        remedy="export the model and serve it with `gatefx serve` or gatefx.generate",
    )
