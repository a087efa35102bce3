"""Prompts, checked at the door: ids and mask of one shape, every row with a token, nothing beyond the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from .engine import DecoderFacts

Rows = Tensor | np.ndarray | Sequence[Sequence[int]]
_MATRIX = 2
_REMEDY = 'pass tokenizer(texts, padding=True, return_tensors="pt"), padded on either side, or a list of lists of ids'


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts.

    Attributes:
        ids, mask: (B, T) int64; the mask is 1 at real tokens.
    """

    ids: Tensor
    mask: Tensor

    @property
    def longest(self) -> int:
        """Real tokens of the longest prompt."""
        return int(self.mask.sum(-1).max())


def read_prompt(input_ids: Rows, attention_mask: Rows | None, facts: DecoderFacts) -> Prompt:
    """The prompts as tensors.

    Args:
        input_ids: (B, T) numbers, or rows of different lengths; attention_mask: (B, T) of 0 and 1, None where every
            token is real.

    Raises:
        InputError: no prompt, an empty one, a mask that does not fit, or ids that the model does not know.
    """
    if attention_mask is None and isinstance(input_ids, Sequence):
        ids, mask = _padded(input_ids, facts.pad)
    else:
        ids = _matrix("input_ids", input_ids)
        mask = torch.ones_like(ids) if attention_mask is None else _matrix("attention_mask", attention_mask)
    if mask.shape != ids.shape:
        raise InputError(
            "input_ids and attention_mask have different shapes.",
            given=f"{tuple(ids.shape)} and {tuple(mask.shape)}",
            expected="one shape (batch, tokens)",
            remedy=_REMEDY,
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise InputError(
            "attention_mask holds something else than 0 and 1.", given=str(sorted(set(mask.flatten().tolist())))
        )
    empty = (mask.sum(-1) == 0).nonzero().flatten().tolist() if ids.shape[0] else ["all"]
    if empty:
        raise InputError(
            "A prompt is empty.", given=f"no real token in row {empty[0]}", expected="one token or more a row",
            remedy="start with the tokenizer's beginning-of-sequence token",
        )  # fmt: skip
    _check_known(ids[mask > 0], facts)
    return Prompt(ids, mask)


def check_length(prompt: Prompt, past: tuple[int, ...] | None, new: int, facts: DecoderFacts) -> None:
    """Refuse what would leave the model's positions.

    Args:
        past: last position of each row's cache, None without one; new: tokens to generate.

    Raises:
        InputError: a prompt longer than the positions, or a generation that would be.
    """
    if facts.positions is None:
        return
    lengths = prompt.mask.sum(-1)
    if past is not None:
        lengths = lengths + torch.tensor(past) + 1
    length = int(lengths.max())
    if length > facts.positions:
        raise InputError(
            "The prompt is longer than the model has positions.",
            given=f"{length} tokens",
            expected=f"at most {facts.positions}",
            remedy="shorten the prompt; dropping its tokens inside the model does not free positions",
        )
    if facts.start and past is None:
        length = len(facts.start)  # an answer has positions of its own
    # The last token that is generated is never read, so it needs no position.
    if length + new - 1 > facts.positions:
        raise InputError(
            "The generation would go past the model's positions.",
            given=f"{length} tokens in front and max_new_tokens={new}",
            expected=f"max_new_tokens of at most {facts.positions - length + 1}",
        )


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths, padded on the right."""
    if not rows or not all(isinstance(row, Sequence) and not isinstance(row, str) for row in rows):
        raise InputError(
            "input_ids holds no prompts.", given=repr(rows)[:80], expected="a list of lists of ids", remedy=_REMEDY
        )
    longest = max(*(len(row) for row in rows), 1)
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.int64)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
    return ids, mask


def _matrix(name: str, value: Rows) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if tensor.dim() != _MATRIX or tensor.is_floating_point():
        raise InputError(
            f"{name} is no batch of numbers.",
            given=f"shape {tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}",
            expected="integers (batch, tokens)",
            remedy=_REMEDY,
        )
    return tensor.to("cpu", torch.int64)


def _check_known(ids: Tensor, facts: DecoderFacts) -> None:
    if int(ids.min()) < 0 or int(ids.max()) >= facts.vocabulary:
        raise InputError(
            "input_ids holds tokens that the model does not know.",
            given=f"ids from {int(ids.min())} to {int(ids.max())}",
            expected=f"0 to {facts.vocabulary - 1}",
            remedy="use the tokenizer that belongs to the model",
        )
