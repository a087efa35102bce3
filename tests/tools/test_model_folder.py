from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gatefx.errors import ArtifactError, BudgetError, InputError, SiteError
from gatefx.tools.model_folder import ADAPTER_CONFIG, check_target, open_model_folder


def test_gates_are_told_from_a_bare_adapter(gates_folder: Path, adapter_folder: Path, base_folder: Path) -> None:
    gates, adapter = open_model_folder(gates_folder), open_model_folder(adapter_folder)
    assert gates.manifest is not None
    assert adapter.manifest is None
    assert gates.base == adapter.base == str(base_folder)
    assert gates.largest_rank == adapter.largest_rank == 8
    assert open_model_folder(adapter_folder, base="elsewhere").base == "elsewhere"


def test_a_budget_is_judged_before_anything_is_loaded(adapter_folder: Path) -> None:
    folder = open_model_folder(adapter_folder)
    folder.check_budget(8)
    folder.check_budget("50%")
    with pytest.raises(BudgetError, match="there are 8"):
        folder.check_budget(9)


def test_a_plain_checkpoint_is_sent_to_prepare(base_folder: Path) -> None:
    with pytest.raises(SiteError, match=r"gatefx\.prepare"):
        open_model_folder(base_folder)


def test_edited_gates_are_refused(gates_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(gates_folder, tmp_path / "copy"))
    (copy / "gates.safetensors").write_bytes(b"\0" * (copy / "gates.safetensors").stat().st_size)
    with pytest.raises(ArtifactError, match="changed after it was written"):
        open_model_folder(copy)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("not json", "cannot be read"),
        ("[]", "no JSON object"),
        (json.dumps({"peft_type": "IA3", "base_model_name_or_path": "b"}), "none that gatefx can gate"),
        (json.dumps({"peft_type": "LORA", "r": 4}), "which model it belongs to"),
    ],
)
def test_an_unfit_adapter_config_is_refused(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text(config)
    with pytest.raises(InputError, match=said):
        open_model_folder(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model folder"):
        open_model_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no model"):
        open_model_folder(tmp_path)


def test_a_taken_target_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    check_target(tmp_path / "new", overwrite=False)
    check_target(tmp_path, overwrite=True)
    with pytest.raises(ArtifactError, match="target exists"):
        check_target(tmp_path, overwrite=False)
