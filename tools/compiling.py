"""What `gatefx optimize` and `gatefx export onnx` do: a model folder in, a folder out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Budget
from ..errors import UntrainedGateError
from ..models.configs.catalogue import resolve_method
from .console import Stages, messages
from .model_folder import ModelFolder, check_target, open_model_folder
from .texts import read_texts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ..passes.deployed import DeployedModel
    from ..passes.methods.ccm import GatedModel

    Batches = list[dict[str, Tensor]]


@dataclass(frozen=True)
class CompileRequest:
    """The options that both commands share; see their --help."""

    model: Path
    out: Path
    method: str
    budget: Budget | None
    data: Path | None
    base: str | None
    text_column: str | None
    max_length: int
    batch_size: int
    distill_steps: int
    fold: bool | None
    freeze_static: bool
    forms: str | None
    overwrite: bool


@dataclass(frozen=True)
class _Opened:
    """A request whose arguments make sense, and its texts as batches."""

    folder: ModelFolder
    tokenizer: PreTrainedTokenizerBase
    batches: Batches | None
    example: dict[str, Tensor]


def parse_budget(text: str | None) -> Budget | None:
    """The budget as a person typed it: "6" counts ranks, "0.4" and "40%" are shares; the library judges the rest."""
    if text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run_optimize(request: CompileRequest) -> DeployedModel:
    """Fit or calibrate the gates, and write them beside their adapter to `request.out`.

    The level that calibration found becomes the routers' own, so a later export without data keeps it.

    Raises:
        GatefxError: a request that makes no sense, or a model that cannot be compiled.
    """
    opened, stages = _open(request)
    with stages.stage("loading and gating the model", bars=True), _quiet():
        gated = _gated(request, opened)
        deployed = _deploy(request, opened, gated)
        gated.budget = deployed.budget
        if deployed.calibration is not None and deployed.calibration.rule == "coverage":
            for router in gated.routers():
                router.coverage.fill_(deployed.calibration.coverage)
        gated.save_pretrained(request.out, overwrite=request.overwrite)
    return deployed


def run_export(request: CompileRequest, opset: int) -> DeployedModel:
    """Deploy the model and write it as an ONNX artifact to `request.out`.

    Raises:
        GatefxError: a request that makes no sense, or a model that cannot be compiled or exported.
    """
    from ..exporting import export

    opened, stages = _open(request)
    with stages.stage("loading and optimizing the model", bars=True), _quiet():
        deployed = _deploy(request, opened, _gated(request, opened))
    with stages.stage("lowering to ONNX"), _quiet():
        export(deployed, request.out, tokenizer=opened.tokenizer, opset=opset, overwrite=request.overwrite)
    return deployed


def _open(request: CompileRequest) -> tuple[_Opened, Stages]:
    """Everything that can be refused without loading a model is refused first."""
    folder = open_model_folder(request.model, request.base)
    resolve_method(request.method)
    folder.check_budget(request.budget)
    check_target(request.out, overwrite=request.overwrite)
    texts = None if request.data is None else read_texts(request.data, request.text_column)
    if folder.manifest is None and texts is None:
        raise UntrainedGateError(
            "The model's gates were never trained, and there is no data to fit them on.",
            given=f"{request.model}: a PEFT adapter without gates",
            expected="unlabelled texts like those the model will serve",
            remedy="pass --data FILE (.txt, .csv, .tsv or .jsonl)",
        )
    stages = Stages(messages())
    with stages.stage("loading libraries"):
        from ..models.packaged_text import batches
        from .model_loading import example_batch, load_tokenizer

        tokenizer = load_tokenizer(folder)
    batched = None
    if texts is not None:
        batched = batches(tokenizer, texts, batch_size=request.batch_size, max_length=request.max_length)
    example = batched[0] if batched is not None else example_batch(tokenizer)
    return _Opened(folder, tokenizer, batched, example), stages


def _gated(request: CompileRequest, opened: _Opened) -> GatedModel:
    """The model with trained gates: loaded, or fitted on the data."""
    from ..passes.harden.distill import distill_gates
    from ..preparing import build_gated
    from .model_loading import load_gated, load_peft

    folder = opened.folder
    if folder.manifest is not None:
        return load_gated(folder, opened.example)
    # Without a budget named, the method's usual one, as gatefx.prepare has it.
    budget = 6 if request.budget is None else request.budget
    gated = build_gated(
        load_peft(folder), resolve_method(request.method), budget,
        example_inputs=opened.example, lora=None, share_frozen=True,
    )  # fmt: skip
    if gated.budget < folder.largest_rank:
        quality = distill_gates(gated, opened.batches or [], steps=request.distill_steps)
        gated.report = gated.report.extended(notes=(str(quality),))
    return gated


def _deploy(request: CompileRequest, opened: _Opened, gated: GatedModel) -> DeployedModel:
    from ..deploy import optimize

    return optimize(
        gated, budget=request.budget, data=opened.batches, fold=request.fold, freeze_static=request.freeze_static,
        forms=request.forms,
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep other libraries' chatter from the person: the command says what matters."""
    from ..models.hf import quiet, transformers_for
    from .console import without_warnings

    with without_warnings(), quiet(transformers_for("this command")):
        yield


def result_of(deployed: DeployedModel, request: CompileRequest) -> dict[str, Any]:
    """What was decided, as plain data with the names of an artifact's manifest."""
    result: dict[str, Any] = {
        "folder": str(request.out),
        "budget": deployed.budget,
        "sites": [site.to_json() for site in deployed.sites],
        "report": deployed.report.to_json(),
    }
    if deployed.calibration is not None:
        result["ranks"] = dataclasses.asdict(deployed.calibration.ranks)
    return result
