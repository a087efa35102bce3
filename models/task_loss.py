"""The task's own loss, given labels: transformers' loss for the captured architecture, or a function of the user's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..errors import InputError

#: Input names that are labels: never inputs of the graph.
LABEL_NAMES = ("labels", "start_positions", "end_positions")

# transformers' names of losses, by how they are called.
_CLASSIFICATION = tuple(f"For{kind}Classification" for kind in ("Sequence", "Image", "Video", "Audio"))
_TOKENS, _SPANS = "ForTokenClassification", "ForQuestionAnswering"
_LANGUAGE = ("ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")
_SPAN_LABELS = ("start_positions", "end_positions")


class TaskLoss(Protocol):
    """Outputs by name and labels by name → a scalar."""

    def __call__(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch."""


@dataclass(frozen=True)
class TransformersLoss:
    """The loss that transformers maps to a model's class (`loss_type`), on a copy of its config."""

    loss_type: str
    config: Any

    def __call__(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Call transformers' loss with the names it gives its arguments."""
        from transformers.loss.loss_utils import LOSS_MAPPING

        function: Any = LOSS_MAPPING[self.loss_type]
        expected = _SPAN_LABELS if self.loss_type == _SPANS else ("labels",)
        missing = [name for name in expected if name not in labels]
        if missing:
            raise InputError(
                f"The loss misses {', '.join(missing)}.", given=", ".join(labels), expected=", ".join(expected)
            )
        if self.loss_type == _SPANS:
            spans = (outputs["start_logits"], outputs["end_logits"])
            return _tensor(function(*spans, *(labels[name] for name in _SPAN_LABELS)))
        logits, wanted = outputs["logits"], labels["labels"]
        if self.loss_type in _CLASSIFICATION:
            return _tensor(function(wanted, logits, self.config))
        if self.loss_type == _TOKENS:
            return _tensor(function(logits, wanted, self.config))
        if getattr(self.config, "is_encoder_decoder", False):
            # A decoder with an encoder reads labels shifted already; its logits and labels stand in line.
            return nn.functional.cross_entropy(logits.flatten(0, -2), wanted.flatten())
        return _tensor(function(logits, wanted, vocab_size=logits.shape[-1]))


def _tensor(value: Any) -> Tensor:
    """What an untyped loss function returned."""
    loss: Tensor = value
    return loss


@dataclass(frozen=True)
class NoLoss:
    """A model whose loss nobody knows: asking for it is an error that says so."""

    model_name: str

    def __call__(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Raise: there is no loss.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.model_name} came without a loss, so labels mean nothing to it.",
            given=", ".join(labels),
            expected="a call without labels, or a model prepared with loss=…",
            remedy="compute the loss from the outputs and add gated.gate_loss(), or prepare(…, loss=function)",
        )


@dataclass(frozen=True)
class CustomLoss:
    """The user's function of (outputs by name, labels by name)."""

    function: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]

    def __call__(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Call the user's function."""
        return self.function(outputs, labels)


def task_loss_of(model: nn.Module) -> TaskLoss:
    """The loss that belongs to a model: transformers' for its models (PEFT-wrapped or not), else none."""
    inner = base_model(model)
    loss_type = getattr(inner, "loss_type", None)
    if loss_type is None and type(inner).__name__.endswith("LMHeadModel"):
        loss_type = "ForCausalLM"  # GPT-2's name says it in another way
    if loss_type in (*_CLASSIFICATION, _TOKENS, _SPANS, *_LANGUAGE):
        return TransformersLoss(loss_type, copy.deepcopy(model_config(model)))
    return NoLoss(type(inner).__name__)


def base_model(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapping, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def model_config(model: nn.Module) -> Any:
    """The transformers config of a model, or None for a plain module."""
    return getattr(base_model(model), "config", None)
