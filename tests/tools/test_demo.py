"""The fast demo on the packaged encoder: everything it promises is there, and its figures are consistent."""

from __future__ import annotations

import json
import re

import pytest

import gatefx as library
from gatefx.errors import MissingDependencyError
from gatefx.models.packaged_cache import PackagedDataError
from gatefx.tools.console import output
from gatefx.tools.demo import print_result, run_demo
from gatefx.tools.demo_result import DemoResult
from gatefx.tools.demo_settings import FAST

pytestmark = pytest.mark.packages


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo") / "out"
    try:
        return run_demo(FAST, folder, folder, seed=0, overwrite=False)
    except (PackagedDataError, MissingDependencyError) as error:
        pytest.skip(f"a package cannot be had: {error}")


def test_the_folder_holds_artifact_gates_figures_and_report(result: DemoResult) -> None:
    assert {path.name for path in result.folder.iterdir()} == {"gates", "model", "report.html", "results.json"}
    session = library.load(result.folder / "model")
    answer = session(**{name: tensor.numpy() for name, tensor in result.data.served.items()})
    assert answer["logits"].shape == (FAST.served, 2)
    assert session.budget == FAST.budget


def test_accuracy_ranks_and_latency_are_measured(result: DemoResult) -> None:
    majority = max(sum(int((batch["labels"] == label).sum()) for batch in result.data.test) for label in (0, 1))
    assert min(result.lora_accuracy, result.ccm_accuracy) > majority / result.data.tested
    assert abs(result.ccm_accuracy - result.exported_accuracy) <= 1 / result.data.tested
    assert result.served.difference < 1e-4
    assert result.ranks is not None
    assert result.ranks.summary.mean == pytest.approx(FAST.budget, abs=0.5)
    assert result.served.ratios["merged"] == 1
    assert all(timing.median_s > 0 for timing in result.served.timings.values())
    assert len(result.ccm.gates) == len(result.lora.losses) == len(result.data.training)


def test_the_table_has_every_model(result: DemoResult, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result, output())
    printed = capsys.readouterr().out
    for said in ("LoRA r=16, merged", "ccm budget 6, exported", "P90", "ratio", "report.html"):
        assert said in printed
    assert f"{result.lora_accuracy:.4f}" in printed


def test_the_notes_say_plainly_who_is_faster(result: DemoResult) -> None:
    ratio = result.served.ratios["ccm"]
    told = next(note for note in result.notes if note.startswith("latency"))
    assert ("slower" in told) == (ratio > 1.02)
    assert ("faster" in told) == (ratio < 0.98)


def test_the_report_needs_nothing_beside_it_and_quotes_no_review(result: DemoResult) -> None:
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)
    assert "<script" not in page
    assert not any(str(text) in page for text in result.data.source.test_texts if len(str(text)) > 20)
    figures = json.loads((result.folder / "results.json").read_text(encoding="utf-8"))
    assert figures["test_sentences"] == result.data.tested
    assert len(figures["rows"]) == 5
