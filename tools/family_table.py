"""Which method works on which family: one cell of the table, tried on a small random model.

    prepare → 2 + 3 training steps on one batch → optimize → other batch sizes, lengths and ragged padding

A cell works if the captured model answers like the one it came from, the loss falls, and the deployed graph answers
like its masked reference. It is declined where gatefx refuses by an error of its own or leaves every site as it is,
which it says with a reason. It is wrong otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import AdapterConfig, Budget
from ..deploy import optimize
from ..errors import GatefxError, PassError
from ..models.configs.catalogue import METHODS, kind_of
from ..models.regularization import REGULARIZATION_MODULES
from ..models.tiny import SEQUENCE_TO_SEQUENCE, tiny, tiny_inputs
from ..models.tiny_configs import FIRST_WORD
from ..passes.deployed import DeployedModel
from ..passes.gated import GatedModel
from ..passes.program import Answer
from ..preparing import prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Largest difference of two float32 answers, as a share of the largest magnitude (at least 1).
TOLERANCE = 1e-5
_WARM_UP, _STEPS, _LEARNING_RATE = 2, 3, 1e-3
#: What trained parameters are moved by before deployment: updates and gates that do nothing hide every mistake.
_SPREAD = 0.1
_RANK = 8
#: Half of what there is, in each method's unit; weightlora's default is half of the sites.
_BUDGETS: Mapping[str, Budget] = {"ccm": 4, "tspeft": 0.5, "gatera": 0.5, "masklora": 0.5}
_OTHER_SHAPES = ((1, 3), (5, 14), (4, 2))

Batch = dict[str, Tensor]


class State(StrEnum):
    """What came of a cell."""

    WORKS = "works"
    DECLINED = "declined"
    WRONG = "wrong"


@dataclass(frozen=True)
class Cell:
    """One method on one family; `detail` says what it did, or why not."""

    family: str
    method: str
    state: State
    detail: str


def try_method(family: str, method: str) -> Cell:
    """Try a method on a family. Whatever is no `GatefxError` goes on to the caller: it is a bug."""
    try:
        state, detail = _tried(family, METHODS[method])
    except PassError as error:
        state, detail = State.WRONG, _reason(error)
    except GatefxError as error:
        state, detail = State.DECLINED, _reason(error)
    return Cell(family, method, state, detail)


def _tried(family: str, standard: AdapterConfig) -> tuple[State, str]:
    torch.manual_seed(0)
    model = tiny(family)
    batch = tiny_inputs(model, batch=6, tokens=9, seed=1)
    # Other seeds: an image that came twice would stand on both sides of a calibrated threshold.
    others = [
        tiny_inputs(model, batch=size, tokens=tokens, seed=seed)
        for seed, (size, tokens) in enumerate(_OTHER_SHAPES, start=2)
    ]
    gated = prepare(
        model, replace(standard, rank=_RANK), _BUDGETS.get(kind_of(standard)), example_inputs=batch, verify=True
    )
    _without_dropout(gated)
    if (gap := _start_gap(model, gated, others)) > TOLERANCE:
        return State.WRONG, f"the captured model is {gap:.1e} from the one it came from"
    before, after = _train(gated, batch, _labels(family, batch))
    if not after < before:
        return State.WRONG, f"the loss rose from {before:.6g} to {after:.6g}"
    _perturb(gated)
    fast = optimize(gated, data=[batch, *others], forms="gathered", verify=True, progress=False)
    if (gap := max(_gap(fast.reference, fast, inputs) for inputs in others)) > TOLERANCE:
        return State.WRONG, f"the deployed graph is {gap:.1e} from its masked reference"
    return _verdict(fast)


def _without_dropout(gated: GatedModel) -> None:
    """A loss is to fall in three steps, not to wander."""
    for module in gated.modules():
        if isinstance(module, REGULARIZATION_MODULES):
            module.p = 0.0


def _start_gap(model: PreTrainedModel, gated: GatedModel, others: Sequence[Batch]) -> float:
    """How far the gated model starts from the one it came from: updates start at zero, whatever their gates say.

    Gates on tokens act from the start, so of them only the graph without gates could be compared.
    """
    if "masklora" in gated.methods:
        return 0.0
    gated.eval()
    return max(_gap(model, gated, inputs) for inputs in others)


def _train(gated: GatedModel, batch: Batch, labels: Tensor) -> tuple[float, float]:
    """The task's loss on one batch before and after the last three steps, in eval mode: nothing in it is drawn.

    The steps before them are for methods that choose what trains on (weightlora's warm-up).
    """
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=_LEARNING_RATE)
    schedule = gated.schedule(_WARM_UP + _STEPS, optimiser)
    losses = []
    for count in (_WARM_UP, _STEPS):
        gated.train()
        for _ in range(count):
            optimiser.zero_grad()
            gated(**batch, labels=labels).loss.backward()
            optimiser.step()
            schedule.step()
        gated.eval()
        with torch.no_grad():
            losses.append(float(gated(**batch, labels=labels).loss))
    return losses[0], losses[1]


def _labels(family: str, batch: Batch) -> Tensor:
    if family in SEQUENCE_TO_SEQUENCE:
        return batch["decoder_input_ids"].roll(-1, dims=1).clamp_min(FIRST_WORD)
    return torch.arange(next(iter(batch.values())).shape[0]) % 2


@torch.no_grad()
def _perturb(gated: GatedModel) -> None:
    for parameter in gated.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=_SPREAD)


@torch.no_grad()
def _gap(wanted: Callable[..., Answer], answered: Callable[..., Answer], inputs: Batch) -> float:
    """Largest difference of two models' logits, as a share of their largest magnitude; infinite where one is NaN."""
    expected, given = wanted(**inputs).logits, answered(**inputs).logits
    gap = float((expected - given).abs().max() / expected.abs().max().clamp_min(1))
    return math.inf if math.isnan(gap) else gap


def _verdict(fast: DeployedModel) -> tuple[State, str]:
    """What became of the sites; nothing done is declined, with the first reason."""
    forms = Counter(site.form for site in fast.sites)
    declined = [f"{row.where}: {row.reason}" for entry in fast.report.passes for row in entry.declined]
    done = ", ".join(f"{count} {form}" for form, count in forms.most_common())
    gated = any(decision.runtime is not None or decision.facts for decision in fast.decisions.values())
    if not gated:
        return State.DECLINED, "; ".join((*declined[:1], *fast.report.notes[-1:]))
    return State.WORKS, f"{done}; {len(declined)} declined, such as {declined[0]}" if declined else done


def _reason(error: GatefxError) -> str:
    return f"{type(error).__name__}: {error.problem}" + (f" ({error.given})" if error.given else "")
