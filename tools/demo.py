"""`gatefx demo`: the way through the house on a real encoder and real sentences, ending in one table and one report."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..deploy import optimize
from ..exporting import export
from ..loading import load
from ..models.hf import quiet, transformers_for
from ..passes.deployed import DeployedModel
from ..passes.gated import GatedModel
from ..passes.methods.ccm_diagnostics import site_names
from ..runtime.profile import pinned_threads
from .console import Stages, messages, output, without_warnings
from .demo_folder import MARKER, choose_folder, staged
from .demo_result import TABLE_COLUMNS, DemoResult
from .demo_scoring import accuracy, accuracy_and_ranks
from .demo_serving import CCM, LORA, MERGED, serve
from .demo_settings import THREADS, DemoSettings
from .demo_training import DemoData, capture_lora, load_data, prepare_ccm, train_ccm, train_lora
from .html_report import check_report_packages, write_report

REPORT, ARTIFACT, GATES = "report.html", "model", "gates"
_ROOMY = 90  # columns from which the table stands apart


def run_demo(settings: DemoSettings, out: Path | None, default: Path, *, seed: int, overwrite: bool) -> DemoResult:
    """Run everything, print the table, and write the folder.

    Args:
        settings: the size; out: folder to write, None takes `default` or the next free number; seed: of everything.

    Raises:
        ArtifactError: the folder is taken. PackagedDataError, MissingDependencyError: something cannot be had.
    """
    started = time.perf_counter()
    folder = choose_folder(out, default, overwrite=overwrite)
    check_report_packages()
    transformers = transformers_for("the demo")
    stages = Stages(messages(), always=True)
    stages.say(f"gatefx demo: {settings.expectation}; writes {folder}")
    with pinned_threads(THREADS), without_warnings(), quiet(transformers), staged(folder) as draft:
        result = _measure(settings, draft, folder, seed, stages, started)
        with stages.stage("writing the report"):
            (draft / MARKER).write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
            write_report(result, draft / REPORT)
    print_result(result, output())
    return result


def _measure(
    settings: DemoSettings, draft: Path, folder: Path, seed: int, stages: Stages, started: float
) -> DemoResult:
    with stages.stage("loading encoder and sentences"):
        data = load_data(settings, seed, stages.say)
    with stages.stage(f"training LoRA r={settings.rank} ({len(data.training)} steps)", bars=True):
        lora_model, lora_run = train_lora(settings, data, seed)
    with stages.stage("scoring LoRA", bars=True):
        lora_accuracy = accuracy(lora_model, data.test, description="scoring LoRA")
    with stages.stage("capturing and gating the encoder"):
        gated = prepare_ccm(settings, data, seed)
    with stages.stage(f"training ccm, budget {settings.budget} ({len(data.training)} steps)", bars=True):
        ccm_run = train_ccm(gated, data)
    with stages.stage("optimizing, exporting"):
        deployed = _deploy(gated, data, draft)
    with stages.stage("scoring ccm in torch", bars=True):
        ccm_accuracy, ranks = accuracy_and_ranks(deployed, data.test, description="scoring ccm in torch")
    with stages.stage("scoring ccm in ONNX Runtime", bars=True):
        session = load(draft / ARTIFACT, threads=THREADS)
        exported_accuracy = accuracy(session, data.test, description="scoring ccm in ONNX Runtime")
    with tempfile.TemporaryDirectory() as scratch:
        with stages.stage("exporting LoRA, merged and not, to time beside it"):
            folders = _export_lora(capture_lora(lora_model, settings, data), Path(scratch)) | {CCM: draft / ARTIFACT}
        expected = deployed(**data.served)["logits"]
        # No spinner beside a clock: it takes time from what is timed.
        with stages.stage(f"serving {settings.served} sentences: merged, LoRA, ccm", bars=True):
            served = serve(folders, data.served, expected, rounds=settings.rounds)
    return DemoResult(
        settings=settings,
        seed=seed,
        data=data,
        lora=lora_run,
        ccm=ccm_run,
        lora_accuracy=lora_accuracy,
        ccm_accuracy=ccm_accuracy,
        exported_accuracy=exported_accuracy,
        ranks=ranks,
        site_names=site_names(gated.graph_module),
        sites=[site.to_json() for site in deployed.sites],
        report=deployed.report.to_json(),
        served=served,
        seconds=time.perf_counter() - started,
        folder=folder,
    )


def _deploy(gated: GatedModel, data: DemoData, draft: Path) -> DeployedModel:
    """Save the trained gates, deploy them for the batch that will be served, and export the result."""
    gated.save_pretrained(draft / GATES)
    deployed = optimize(gated, data=data.calibration, workload=_workload(data), progress=False)
    export(deployed, draft / ARTIFACT, tokenizer=data.tokenizer)
    return deployed


def _workload(data: DemoData) -> tuple[int, int]:
    batch, tokens = data.served["input_ids"].shape
    return batch, tokens


def _export_lora(lora: GatedModel, folder: Path) -> dict[str, Path]:
    """The trained LoRA model twice: folded into the weights, and as it is."""
    return {
        name: export(optimize(lora, budget="100%", fold=fold), folder / name)
        for name, fold in ((MERGED, True), (LORA, False))
    }


def print_result(result: DemoResult, console: Console) -> None:
    """The table, the notes, and where everything lies."""
    title = f"{result.data.source.name}: {result.data.tested} test sentences, adapters of r={result.settings.rank}"
    padding = (0, 2 if console.width >= _ROOMY else 1, 0, 0)
    table = Table(title=title, title_justify="left", box=None, padding=padding, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    for column in TABLE_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(row.model, row.engine, *result.cells(row))
    console.print(table)
    console.print(result.legend, style="dim")
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"artifact  {result.folder / ARTIFACT}", markup=False, soft_wrap=True)
    console.print(f"report    {result.folder / REPORT}", markup=False, soft_wrap=True)
