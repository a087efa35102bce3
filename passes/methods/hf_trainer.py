"""The HF Trainer's side of training gates: a callback that drives the schedule, logs ranks, and saves gates.

Everything it changes lives in buffers of the model, so a run resumed from a checkpoint goes on exactly where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, missing_package
from ..gated import GatedModel
from .method import MethodSchedule

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise missing_package("transformers", extra="hf", feature="gatefx.GateCallback") from error

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_GATES_FOLDER = "gates"


class GateCallback(TrainerCallback):  # type: ignore[misc]  # transformers' classes are untyped here
    """Give this to `Trainer(callbacks=[…])` when the model is one that `gatefx.prepare` returned.

    After each optimiser step the schedule observes the batch; logs gain the method's figures (for ccm: effective rank,
    entropy, temperature, coverage and penalty); each checkpoint gains a folder `gates` (see saving.py).

    Attributes:
        schedule: the schedule, from the start of training on; ccm's `history` holds every step's diagnostics.
    """

    def __init__(self) -> None:
        self.schedule: MethodSchedule | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Start the schedule over the run's steps."""
        # Accelerate wraps the optimiser; methods that take parameters out of training edit the one inside.
        inner = getattr(optimizer, "optimizer", optimizer)
        self.schedule = _gated(model).schedule(state.max_steps, inner)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Observe the step's last batch."""
        if self.schedule is not None:
            self.schedule.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Add the gates' diagnostics to the training log."""
        if logs is None or "loss" not in logs or self.schedule is None:
            return
        gates = dict(self.schedule.figures())
        logs.update(gates)
        # The Trainer has put a copy of the row into its history by now.
        if state.log_history and state.log_history[-1].get("loss") == logs["loss"]:
            state.log_history[-1].update(gates)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Write adapter and gates beside the Trainer's own checkpoint."""
        if args.output_dir is not None and state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _GATES_FOLDER
            _gated(model).save_pretrained(folder, overwrite=True)


def _gated(model: Any) -> GatedModel:
    inner = getattr(model, "module", model)
    if not isinstance(inner, GatedModel):
        raise InputError(
            "GateCallback found no gated model in the Trainer.",
            given=type(inner).__name__,
            expected="a model that gatefx.prepare returned",
            remedy="pass Trainer(model=gatefx.prepare(…), callbacks=[gatefx.GateCallback()])",
        )
    return inner
