"""How faithful a choice of tokens is: MaskLoRA's report (§5), on a deployed model and unlabelled or labelled batches.

    sufficiency   share of examples that the kept tokens alone answer as all tokens do; with labels also the accuracies
    necessity     share of examples whose answer flips when the kept tokens go and the dropped ones stay
    divergence    KL(full ‖ masked) in nats; achieved ρ: mean and standard deviation over examples

Full, kept and dropped are one graph: the masked one, whose choices are widened or turned round by hooks. Tokens that
must stay (those a head reads by position) stay in all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError, MethodError
from ..models.hard_token_gate import HardTokenGate
from .deployed import DeployedModel
from .graph.signature import signature_of
from .harden.token_calibration import hard_gates

_LOGITS, _LABELS = "logits", "labels"
_CLASSES = 2  # axes of (B, classes)

Choice = tuple[Tensor, Tensor]
Change = Callable[[Tensor, Tensor], Choice]


@dataclass(frozen=True)
class Faithfulness:
    """The report; `accuracy` and `full_accuracy` are None without labels."""

    sufficiency: float
    necessity: float
    divergence: float
    share: float
    deviation: float
    accuracy: float | None = None
    full_accuracy: float | None = None

    def __str__(self) -> str:
        return (
            f"sufficiency {self.sufficiency:.1%}, necessity {self.necessity:.1%}, KL {self.divergence:.4f}, "
            f"kept {self.share:.1%} ± {self.deviation:.1%}"
        )


@torch.no_grad()
def faithfulness(model: DeployedModel, data: Sequence[Mapping[str, Tensor]]) -> Faithfulness:
    """Measure a deployed classifier at the budget in force; the model is left as it is.

    Args:
        data: batches; where they have `labels`, accuracies are measured too.

    Raises:
        MethodError: the model drops no tokens; InputError: it is no classifier, or there is no data.
    """
    gates = hard_gates(model.reference_graph)
    if not gates:
        raise MethodError("The model drops no tokens.", given=", ".join(model.methods), expected="masklora")
    if not data:
        raise InputError("There is no data to measure on.", given="no batches", expected="at least one")
    rows: dict[str, list[Tensor]] = {name: [] for name in ("full", "kept", "dropped", "share", "labels")}
    for batch in data:
        inputs = {name: value for name, value in batch.items() if name != _LABELS}
        counts: list[Tensor] = []
        rows["full"].append(_answers(model, inputs, gates, [_all] * len(gates)))
        rows["kept"].append(_answers(model, inputs, gates, [None] * (len(gates) - 1) + [_noting(counts)]))
        rows["dropped"].append(_answers(model, inputs, gates, [_turned, *[_all] * (len(gates) - 1)]))
        rows["share"].append(counts[0])
        rows["labels"] += [batch[_LABELS]] if _LABELS in batch else []
    return _report({name: torch.cat(values) for name, values in rows.items() if values})


def _report(rows: Mapping[str, Tensor]) -> Faithfulness:
    full, kept, dropped = (rows[name].double() for name in ("full", "kept", "dropped"))
    said = full.argmax(-1)
    p, q = full.log_softmax(-1), kept.log_softmax(-1)
    share, labels = rows["share"].double(), rows.get("labels")
    return Faithfulness(
        sufficiency=_mean(kept.argmax(-1) == said),
        necessity=_mean(dropped.argmax(-1) != said),
        divergence=float((p.exp() * (p - q)).sum(-1).mean()),
        share=float(share.mean()),
        deviation=float(share.std(correction=0)),
        accuracy=None if labels is None else _mean(kept.argmax(-1) == labels),
        full_accuracy=None if labels is None else _mean(said == labels),
    )


def _mean(hits: Tensor) -> float:
    return float(hits.double().mean())


def _answers(
    model: DeployedModel,
    inputs: Mapping[str, Tensor],
    gates: Sequence[HardTokenGate],
    changes: Sequence[Change | None],
) -> Tensor:
    graph = model.reference_graph
    with _changed(gates, changes):
        answer: Mapping[str, Tensor] = graph(*signature_of(graph).arrange(inputs))
    if _LOGITS not in answer or answer[_LOGITS].dim() != _CLASSES:
        raise InputError(
            "Faithfulness is measured on classifiers.", given=", ".join(answer), expected="logits (B, classes)"
        )
    return answer[_LOGITS]


@contextmanager
def _changed(gates: Sequence[HardTokenGate], changes: Sequence[Change | None]) -> Iterator[None]:
    """Gates whose choices are changed after they were made."""
    handles = []
    for gate, change in zip(gates, changes, strict=True):
        if change is None:
            continue

        def apply(
            _module: nn.Module, given: tuple[Tensor, ...], answer: Choice, change: Change = change
        ) -> Choice | None:
            return change(torch.cat([given[2].unsqueeze(1), answer[1].unsqueeze(1)], 1), answer[0])

        handles.append(gate.register_forward_hook(apply))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _left(priority: Tensor) -> Tensor:
    """How many tokens reached the cut, (B,)."""
    return (priority > torch.finfo(priority.dtype).min).sum(-1)


def _all(_counts: Tensor, priority: Tensor) -> Choice:
    return priority, _left(priority).clamp_min(1)


def _turned(counts: Tensor, priority: Tensor) -> Choice:
    """The tokens that would go, and those that must stay."""
    limits = torch.finfo(priority.dtype)
    must = priority == limits.max
    gone = priority == limits.min
    turned = torch.where(must | gone, priority, -priority)
    return turned, (_left(priority) - counts[:, 1] + must.sum(-1)).clamp_min(1)


def _noting(shares: list[Tensor]) -> Change:
    def note(counts: Tensor, priority: Tensor) -> Choice:
        shares.append(counts[:, 1].double() / counts[:, 0].clamp_min(1))
        return priority, counts[:, 1]

    return note
