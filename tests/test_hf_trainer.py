"""The HF Trainer drives gates through the callback: logs, checkpoints, and a resumed run that equals the whole one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import gatefx
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.methods.ccm_schedule import routers_of

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

ROWS = tiny_inputs("bert", batch=24, tokens=6)
LABELS = torch.arange(24) % 2
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**{name: value[index] for name, value in ROWS.items()}, "labels": LABELS[index]}


def trainer_in(folder: Path, steps: int = 6, **options: Any) -> Any:
    torch.manual_seed(0)
    config = gatefx.CCM(rank=4, d_router=8, target_modules=("query", "value"), lora_dropout=0.1)
    gated = gatefx.prepare(tiny("bert"), config, budget=2, example_inputs={n: v[:4] for n, v in ROWS.items()})
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=5,
        **options,
    )
    return transformers.Trainer(
        model=gated, args=arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[gatefx.GateCallback()]
    )


def last_step(trainer: Any) -> Any:
    """The last row of the gates' own history."""
    (callback,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, gatefx.GateCallback))
    return callback.schedule.history[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_in(folder)
    trainer.train()
    return trainer, folder


def test_logs_hold_the_gates_diagnostics(whole: tuple[Any, Path]) -> None:
    rows = [row for row in whole[0].state.log_history if "loss" in row]

    assert len(rows) == 6
    for row in rows:
        assert 1 <= row["effective_rank"] <= 4
        assert {"gate_entropy", "gate_temperature", "gate_coverage", "gate_penalty", "gate_collapse_rate"} <= set(row)
    assert rows[-1]["gate_temperature"] < rows[0]["gate_temperature"]
    assert int(routers_of(whole[0].model.graph_module)[0].updates) == 6


def test_checkpoints_hold_gates_that_load(whole: tuple[Any, Path]) -> None:
    trainer, folder = whole
    example = {name: value[:4] for name, value in ROWS.items()}
    loaded = gatefx.from_pretrained(tiny("bert"), folder / "checkpoint-6" / "gates", example_inputs=example).eval()

    with torch.no_grad():
        assert torch.equal(loaded(**example).logits, trainer.model.eval()(**example).logits)


def test_a_resumed_run_equals_the_uninterrupted_one(whole: tuple[Any, Path], tmp_path: Path) -> None:
    trainer, folder = whole
    resumed = trainer_in(tmp_path)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))

    assert int(routers_of(resumed.model.graph_module)[0].updates) == 6
    wanted, found = trainer.model.state_dict(), resumed.model.state_dict()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert last_step(trainer) == last_step(resumed)


def test_evaluation_is_the_task_s_loss_alone(whole: tuple[Any, Path]) -> None:
    trainer = whole[0]
    metrics = trainer.evaluate()

    with torch.no_grad():
        wanted = float(trainer.model.eval()(**ROWS, labels=LABELS).loss)
    assert metrics["eval_loss"] == pytest.approx(wanted, abs=1e-5)
    assert math.isfinite(wanted)


def test_gradients_may_be_accumulated(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, steps=3, gradient_accumulation_steps=2)
    trainer.train()

    assert int(routers_of(trainer.model.graph_module)[0].updates) == 3
