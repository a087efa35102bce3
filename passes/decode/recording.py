"""A prefill or a decode that tells what its gates on tokens decide while it runs.

The graph is interpreted node by node, so nothing is added to the one that is deployed, and the decisions are those
that it acts on, in whichever form its adapters have:

    token_gated_lora(base, x, A, B, G, τ, s)     |s|·√(uᵀ G u) ≥ τ·‖base‖, u = A x         once more, from its arguments
    routed_linear(x, W0, W1, bias, choice)       choice
    HardUpdateThreshold, Hard- and SoftModulation of sites that stay masked                 likewise
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import InputError
from ...models.families import ATTENTION_MASK
from ...models.modulation import HardModulation, SoftModulation
from ...models.update_threshold import HardUpdateThreshold, norms, takes
from ...runtime.generation.update_records import Phase, UpdateRecords
from ...runtime.ops import update_ops  # noqa: F401  # defines the operators that are watched
from ...runtime.ops.cpu_updates import tokens_taking
from ..deployed import DeployedModel
from ..find.adapters import plain_path
from ..find.answer_rows import has_encoder
from ..find.modulations import find_modulated
from ..find.thresholds import find_thresholded
from ..graph.signature import signature_of

_SKIPPING = torch.ops.gatefx.token_gated_lora.default
_ROUTED = torch.ops.gatefx.routed_linear.default
_DECIDING = ("tspeft", "gatera")


class RecordedProgram(nn.Module):
    """One program of a decoder, which tells `records` what its gates decide.

    Args:
        graph_module: takes its inputs by position, the attention mask (B, T) of the tokens among them.
    """

    def __init__(self, graph_module: fx.GraphModule, records: UpdateRecords, phase: Phase) -> None:
        super().__init__()
        self.graph_module = graph_module
        self._records, self._phase = records, phase
        self._mask = signature_of(graph_module).input_names.index(ATTENTION_MASK)
        self._masked = {item.call: item.site.name for item in find_thresholded(graph_module)}
        self._masked |= {item.gate: item.site.name for item in find_modulated(graph_module)}

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The program's answers."""
        found: dict[str, Tensor] = {}
        answers: dict[str, Tensor] = _Watching(self.graph_module, self._masked, found).run(*inputs)
        for site, gate in found.items():
            self._records.add(self._phase, site, gate, inputs[self._mask])
        return answers


class _Watching(fx.Interpreter):
    """Runs a graph, and keeps every gate's decisions (B, T) in `found`, by adapter."""

    def __init__(self, graph_module: fx.GraphModule, masked: dict[fx.Node, str], found: dict[str, Tensor]) -> None:
        super().__init__(graph_module)
        self._masked, self._found = masked, found

    def run_node(self, n: fx.Node) -> Any:
        """Run it, and look at it where it decides."""
        answer = super().run_node(n)
        if n in self._masked or n.target in (_SKIPPING, _ROUTED):
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            if n in self._masked:
                module = self.module.get_submodule(str(n.target))
                self._found[self._masked[n]] = _decided(module, arguments, answer)
            elif n.target is _SKIPPING:
                base, x, lora_a, _, gram, threshold, scale = arguments
                self._found[_path(n.args[2], ".lora_A")] = tokens_taking(base, x @ lora_a.t(), gram, threshold, scale)
            else:
                self._found[_path(n.args[2], ".updated_weight")] = arguments[4]
        return answer


def check_recorded(model: DeployedModel) -> None:
    """Refuse what has nothing to record, or nothing that can be counted by token.

    Raises:
        InputError: no method that decides per token, or prompts whose tokens are dropped on the way.
    """
    methods = tuple(model.methods)
    if not set(methods) & set(_DECIDING):
        raise InputError(
            "No gate of this model decides per generated token.",
            given=f"a model of {', '.join(methods)}",
            expected=f"one of {', '.join(_DECIDING)}",
            remedy="leave records out; ccm holds what it chose on the prompt, see generation.cache",
        )
    if has_encoder(model.graph_module):
        raise InputError(
            "Decisions of an encoder-decoder are not recorded.",
            given=model.signature.architecture,
            expected="a decoder without an encoder",
            remedy="leave records out",
        )
    if "masklora" in methods:
        raise InputError(
            "Decisions are recorded where every token stays.",
            given=", ".join(methods),
            expected=f"a model without masklora, of {' or '.join(_DECIDING)}",
        )


def _decided(module: nn.Module, arguments: tuple[Any, ...], answer: Tensor) -> Tensor:
    """The gates (B, T) of a site that stays masked."""
    if isinstance(module, HardUpdateThreshold):
        update, base, level = arguments
        return takes(*norms(update, base), module.threshold.tau, level)
    if isinstance(module, HardModulation):
        return answer
    if isinstance(module, SoftModulation):
        return answer.squeeze(-1)
    raise InputError("This gate is no deployed one.", given=type(module).__name__, expected="a model of optimize")


def _path(weight: object, part: str) -> str:
    """The adapter that a tensor of the graph belongs to: its name ends before `part`."""
    name = str(weight.target) if isinstance(weight, fx.Node) else str(weight)
    return plain_path(f"{name.partition(part)[0]}.weight")
