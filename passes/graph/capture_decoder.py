"""Decoders are captured with what decides visibility in plain sight: positions and a mask of explicit tensors.

    model(input_ids, attention_mask)                 positions = clamp_min(cumsum(attention_mask) - 1, 0)
                                               →     visible   = visible_keys(positions, positions, attention_mask, w)
                                                     model(input_ids, visible, position_ids=positions)

transformers would build masks from places in the row, or leave them to a flag of the attention, both wrong once rows
leave a cache. Here one operator says all of it, so that passes can lengthen it by a cache or gather it.

Sound: the masks are transformers' own where padding stands on the right. Where it stands on the left, its `generate`
counts positions like this too, its bare `forward` does not. The model is run once to see that it takes them so;
one that does not is captured as it is. Of those, models with a linear bias get explicit positions in their graph
(`linear_bias.py`), which is run once too; the rest cannot generate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from ...models.families import ATTENTION_MASK
from ...models.task_loss import base_model
from ...runtime.ops.visible_ops import visible_keys
from .linear_bias import PlaceLinearBias

INPUT_IDS = "input_ids"
POSITIONS = "position_ids"
_LOGITS = "logits"
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_CLOSE = {torch.float64: 1e-7, torch.float32: 1e-3}  # of the largest logit
_CLOSE_BELOW = 3e-2  # half precision
_CLOSE_FUSED = 1e-3  # models of any precision may take the softmax of a linear bias in float32

#: Inputs by name → the arguments of the model's forward.
Arguments: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Any]]


def as_they_are(inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The inputs themselves, of every model that is no decoder."""
    return dict(inputs)


def decoder_arguments(model: nn.Module, example: Mapping[str, Tensor]) -> tuple[Arguments, str | None]:
    """How to call a model while it is captured, and why it cannot generate if it is a decoder that takes no masks.

    Args:
        model: left in eval mode; example: one batch.
    """
    needed = {INPUT_IDS, ATTENTION_MASK}
    if not is_decoder(model) or not needed <= set(example) <= {*needed, POSITIONS}:
        return as_they_are, None
    config = getattr(base_model(model), "config", None)
    additive = getattr(config, "_attn_implementation", "") == "eager"
    problem = None
    for windows in (windows_of(config), {_FULL: 0}):  # some configs name a window that their models do not look at
        arguments = _Explicit(windows, additive=additive)
        found = _disagreement(model, arguments, dict(example))
        if found is None:
            return arguments, None
        problem = problem or found
    return as_they_are, f"the model cannot generate here: {problem}"


def is_decoder(model: nn.Module) -> bool:
    """Whether the model predicts the next token from those before, without an encoder."""
    inner = base_model(model)
    encoded = getattr(getattr(inner, "config", None), "is_encoder_decoder", False)
    return type(inner).__name__.endswith(_CAUSAL) and not encoded


def windows_of(config: Any) -> dict[str, int]:
    """The kinds of attention that a transformers config asks for, each with its window, 0 where there is none."""
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {_SLIDING if window else _FULL: window}
    return {kind: window if kind == _SLIDING else 0 for kind in dict.fromkeys(kinds)}


def token_positions(attention_mask: Tensor) -> Tensor:
    """Where each real token stands among the real tokens of its row, (B, T) int64; padding holds a neighbour's."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


class _Explicit:
    """The arguments with explicit positions and masks.

    Args:
        windows: kind of attention → its window; additive: masks are added to scores, not looked up.
    """

    def __init__(self, windows: Mapping[str, int], *, additive: bool) -> None:
        self.windows = windows
        self.additive = additive

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        mask = inputs[ATTENTION_MASK]
        positions = inputs[POSITIONS] if POSITIONS in inputs else token_positions(mask)
        masks = {kind: self._mask(positions, mask, window) for kind, window in self.windows.items()}
        # Models of one kind of layer take a mask, others one for each kind.
        chosen = masks if len(masks) > 1 else next(iter(masks.values()))
        return {**inputs, POSITIONS: positions, ATTENTION_MASK: chosen}

    def _mask(self, positions: Tensor, mask: Tensor, window: int) -> Tensor:
        visible = visible_keys(positions, positions, mask, window)
        return torch.where(visible, 0.0, torch.finfo(torch.float32).min) if self.additive else visible


@torch.no_grad()
def _disagreement(model: nn.Module, arguments: _Explicit, example: dict[str, Tensor]) -> str | None:
    """How the model with explicit masks differs from the model at real tokens; None where it does not."""
    if POSITIONS not in inspect.signature(base_model(model).forward).parameters:
        return "its forward takes no position_ids"
    model.eval()
    plain = {POSITIONS: token_positions(example[ATTENTION_MASK]), **example}
    try:
        wanted, answered = (model(**given)[_LOGITS] for given in (plain, arguments(example)))
    except Exception as error:  # noqa: BLE001  # a model that does not take masks of this form raises what it likes
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'with explicit masks'}"
    gap = _gap(wanted, answered, example[ATTENTION_MASK] > 0)
    close = gap <= _CLOSE.get(wanted.dtype, _CLOSE_BELOW)
    return None if close else f"with explicit masks its logits differ by {gap:.2g} of the largest"


def _gap(wanted: Tensor, answered: Tensor, real: Tensor) -> float:
    """How far logits of real tokens are apart, of the largest."""
    gap, size = (wanted - answered)[real].abs().max(), wanted[real].abs().max()
    return float(gap) / max(float(size), 1e-6)


@torch.no_grad()
def with_linear_bias(graph_module: fx.GraphModule, example: Mapping[str, Tensor]) -> fx.GraphModule | None:
    """A decoder's graph that reads explicit positions for its linear bias; None where it has none.

    Args:
        graph_module: captured from a model as it is, left in eval mode; example: one batch.
    """
    placed = PlaceLinearBias()(graph_module).graph_module
    if placed is graph_module:
        return None
    wanted, answered = (graph.eval()(*example.values())[_LOGITS] for graph in (graph_module, placed))
    gap, close = _gap(wanted, answered, example[ATTENTION_MASK] > 0), _CLOSE.get(wanted.dtype, _CLOSE_BELOW)
    return placed if gap <= max(_CLOSE_FUSED, close) else None
