"""Choose part by part: hard gates on tokens of a whole prompt → gates that remember the scores of the parts before.

    hard_token_gate_ℓ(h, mask, n, share, protected)            gate, seen′ = streamed_token_gate_ℓ(…, past_scores.ℓ)
                                                          →    past_scores.ℓ  (B, N + 1), an input; an answer then
    protected = near the first or the last token               near the first or `prompt_end`, or this part's last token

`prompt_end` (B,) is the position of each prompt's last token. A part's own last token stays too: it is where the
prefill reads its logits.

A gate by threshold keeps its κ and remembers nothing: it decides token by token anyway.

Approximate: the choice over the whole prompt becomes that of a running quantile (`models/streamed_token_gate.py`).

Refuses gates on scores of the path, which are normalised over the whole prompt.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from ...errors import PassError
from ...models.hard_token_gate import HardTokenGate
from ...models.score_histogram import BINS, COLD
from ...models.streamed_token_gate import StreamedTokenGate
from ...runtime.cache_names import PROMPT_END, present_of, seen_name
from ..contract import Approximate, Exact, Pass
from ..graph.edit import answers_of, emit, own_module, shape_of, stamp, tensor_value
from ..graph.signature import Axis, InputSpec, signature_of
from ..report import Outcome

aten = torch.ops.aten
_GIVEN = 5  # state, mask, n, share, protected; a path would follow


@dataclass(frozen=True)
class StreamChoices(Pass):
    """Let gates on tokens choose within a part, by all that was seen.

    Attributes:
        cold: tokens, before which gates choose by top-k.
    """

    cold: int = COLD

    after: ClassVar[tuple[str, ...]] = ("ReadPart",)
    exactness: ClassVar[Exact | Approximate] = Approximate("a running quantile chooses instead of the whole prompt's")

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Gates whose scores hang on their tokens alone."""
        for node, gate in _gates(graph_module):
            if gate.predictor is None or len(node.args) < _GIVEN:
                raise PassError(
                    f"{node.target} chooses by scores of the path, which are normalised over the whole prompt.",
                    expected="MaskLoRA(scores='predicted')",
                    remedy="leave chunk out, or pass budget='100%'",
                )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Replace every gate by top-k, and what is protected."""
        gates = _gates(graph_module)
        if not gates:
            return Outcome()
        self._protect_ends(graph_module, gates[0][0])
        answers, specs = answers_of(graph_module.graph), []
        for node, gate in gates:
            if gate.cutoff is None:
                seen, spec = self._remember(graph_module, node, gate)
                answers[present_of(spec.name)] = seen
                specs.append(spec)
        graph_module.graph.output_node().args = (answers,)
        graph_module.delete_all_unused_submodules()
        signature = signature_of(graph_module)
        graph_module.meta["signature"] = replace(signature, inputs=(*signature.inputs, *specs), outputs=tuple(answers))
        return Outcome((PROMPT_END, *(str(node.target) for node, _ in gates)))

    def _protect_ends(self, graph_module: fx.GraphModule, gate: fx.Node) -> None:
        """Say where the prompt ends, which a part does not know."""
        graph, signature = graph_module.graph, signature_of(graph_module)
        protected, near, distance = _ends(gate)
        positions = distance.all_input_nodes[0]
        end = self._input(graph_module, PROMPT_END, positions, torch.int64)
        spec = InputSpec(PROMPT_END, torch.int64, signature.inputs[0].axes[:1])
        graph_module.meta["signature"] = replace(signature, inputs=(*signature.inputs, spec))
        with graph.inserting_before(near):
            column = self._emit(graph, aten.unsqueeze.default, (end, 1), distance)
            behind = self._emit(graph, aten.sub.Tensor, (positions, column), distance)
            own = self._emit(graph, aten.ge.Scalar, (distance, 0), distance)
        near.replace_input_with(distance, behind)
        readers = list(protected.users)
        with graph.inserting_after(protected):
            both = self._emit(graph, aten.logical_or.default, (protected, own), distance)
        for reader in readers:
            reader.replace_input_with(protected, both)

    def _remember(self, graph_module: fx.GraphModule, node: fx.Node, gate: HardTokenGate) -> tuple[fx.Node, InputSpec]:
        """Replace one gate; what it has seen then, and the input that says what it saw before."""
        graph, name, hard = graph_module.graph, seen_name(str(node.target)), str(node.target)
        seen = self._input(graph_module, name, node, torch.float32, BINS + 1)
        made = hard.replace("hard_", "streamed_")
        own_module(graph_module, made, StreamedTokenGate(gate, self.cold).eval())
        priority, counts = node.meta["val"]
        with graph.inserting_before(node):
            three = stamp(graph.call_module(made, (*node.args[:_GIVEN], seen)), origin=self.name, like=node)
            three.meta["val"] = (priority, counts, seen.meta["val"])
            after = self._emit(graph, operator.getitem, (three, 2), seen)
        node.replace_all_uses_with(three, delete_user_cb=lambda user: user is not after)
        graph.erase_node(node)
        batch = signature_of(graph_module).inputs[0].axes[0]
        return after, InputSpec(name, torch.float32, (batch, Axis(str(BINS + 1), BINS + 1)))

    def _input(
        self, graph_module: fx.GraphModule, name: str, like: fx.Node, dtype: torch.dtype, *sizes: int
    ) -> fx.Node:
        """A new input (B, *sizes)."""
        graph = graph_module.graph
        inputs = graph.find_nodes(op="placeholder")
        with graph.inserting_after(inputs[-1]):
            node = stamp(graph.placeholder(name.replace(".", "_")), origin=self.name, like=like)
        value = tensor_value(inputs[0])
        with value.fake_mode:  # type: ignore[attr-defined]  # symbolic values are fake
            node.meta["val"] = value.new_empty((shape_of(inputs[0])[0], *sizes), dtype=dtype)
        return node

    def _emit(self, graph: fx.Graph, target: Callable[..., Any], args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        return emit(graph, target, args, origin=self.name, like=like)


def _ends(gate: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
    """(what a gate protects, that a token is near the last one, how far it is), as `FeedTokenGates` says them.

    Raises:
        PassError: the gate reads something else.
    """
    protected = gate.args[_GIVEN - 1]
    if isinstance(protected, fx.Node) and protected.target is aten.logical_or.default:
        near = protected.all_input_nodes[1]
        if near.target is aten.ge.Scalar and near.all_input_nodes[0].target is aten.sub.Tensor:
            return protected, near, near.all_input_nodes[0]
    raise PassError(f"{gate.name} does not say which ends of a prompt it keeps.")


def _gates(graph_module: fx.GraphModule) -> tuple[tuple[fx.Node, HardTokenGate], ...]:
    """The hard gates on tokens that a graph calls, cut by cut."""
    found = []
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, HardTokenGate):
            found.append((node, module))
    return tuple(found)
