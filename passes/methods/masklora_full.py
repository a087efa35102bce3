"""The full forward of MaskLoRA: the model with every token, its answers and the score of every token.

One more forward a step, without dropout and, unless scores carry gradients, without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain as joined
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from ...errors import MethodError, PassError
from ...models.configs.masklora import MaskLoRA
from ...models.token_gate import TokenGate
from ...models.token_scores import aggregated, clip_levels, normalized
from ..chain import Chain
from ..find.last_token import is_decoder_graph
from ..gate.token_scores import TOKEN_SCORES, ShowTokenScores, token_gates
from ..graph.signature import signature_of
from ..harden.freeze import FreezeRegularization
from ..harden.settle_tokens import SettleTokenGates

if TYPE_CHECKING:
    from ..gated import GatedModel


@dataclass(frozen=True)
class FullAnswer:
    """What the model says of a batch with every token.

    Attributes:
        outputs: by name, without gradients; shifts: s (L,B,T); real: (B,T) 1 at real tokens.
    """

    outputs: Mapping[str, Tensor]
    shifts: Tensor
    real: Tensor


class FullForward:
    """The graph without token gates, with scores, over a model's own tensors.

    Args:
        graph_module: with training gates on tokens.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        gates = token_gates(graph_module)
        config = gates[0][1].config if gates else MaskLoRA()
        show = ShowTokenScores(config.influence, config.heads)
        settled = Chain(graph_module).then(FreezeRegularization(), SettleTokenGates(), show)
        self.graph = settled.graph
        self.names = signature_of(graph_module).input_names
        mask = gates[0][0].args[1] if gates else None
        self.mask = str(mask.target) if isinstance(mask, fx.Node) else None

    def __call__(self, tensors: Sequence[Tensor], *, gradients: bool = False) -> FullAnswer:
        """Answers and shifts on the graph's inputs, in order."""
        with torch.set_grad_enabled(gradients):
            answers = dict(self.graph(*tensors))
        shifts = answers.pop(TOKEN_SCORES)
        real = torch.ones_like(shifts[0])
        if self.mask is not None:
            real = tensors[self.names.index(self.mask)].to(shifts.dtype)
        return FullAnswer({name: value.detach() for name, value in answers.items()}, shifts, real)


class TrainingForward:
    """The full forward of a model that trains, made again where the model's graph or tensors became others."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._graph: fx.GraphModule | None = None
        self._full: FullForward | None = None

    def of(self, model: GatedModel) -> FullForward:
        """The model's full forward.

        Raises:
            MethodError: a decoder, whose gates are fitted and not trained.
        """
        _renew(self, model)
        if self._full is None:
            raise PassError("The full forward was not made.")
        return self._full

    def renew(self, model: GatedModel) -> None:
        """Make it again if it is not that of the model as it is now; see `of`."""
        graph = model.graph_module
        tensors = list(_tensors(graph))
        same = len(tensors) == len(self._tensors) and all(a is b for a, b in zip(tensors, self._tensors, strict=True))
        if self._full is None or self._graph is not graph or not same:
            _check_trainable(graph)
            self._full, self._graph, self._tensors = FullForward(graph), graph, tensors


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _renew(forward: TrainingForward, model: GatedModel) -> None:
    """Run as it is while Dynamo traces, which cannot follow passes.

    A tensor that becomes another one has it trace again, and this run: both graphs read the same tensors, and Dynamo
    guards which of its inputs are one.
    """
    forward.renew(model)


def _check_trainable(graph: fx.GraphModule) -> None:
    """Refuse decoders.

    Raises:
        MethodError: as said.
    """
    if is_decoder_graph(graph):
        raise MethodError(
            "Gates on a decoder's tokens are fitted, not trained: a loss over a text reads the answers of tokens "
            "that they drop.",
            given="a call in training mode",
            expected="a decoder whose adapters were trained without gates",
            remedy='train the PEFT model, then call gatefx.optimize(model, "masklora", data=prompts)',
        )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return joined(module.parameters(), module.buffers())


def set_scores(gates: Sequence[TokenGate], answer: FullAnswer) -> None:
    """Give a batch's ŝ to the gates, and move their running clip (appendix C).

    The paper smooths ŝ_i itself, which has no predecessor where every batch holds other tokens; what needs to be
    steady is smoothed with the same β: the clip here, the cutoff κ in the gates.
    """
    levels = clip_levels(answer.shifts.detach(), answer.real)
    for gate in gates:
        gate.observe_clip(levels)
        gate.full = aggregated(
            normalized(answer.shifts, answer.real, gate.cap), gate.config.aggregate, gate.config.kinds
        )


def clip_from(answers: Sequence[FullAnswer]) -> Tensor:
    """P99.5 of every scored layer over many batches, (L,)."""
    rows = torch.cat([answer.shifts[:, answer.real > 0] for answer in answers], dim=1)
    return clip_levels(rows.unsqueeze(1), torch.ones_like(rows[:1]))
