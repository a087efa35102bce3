"""What `gatefx optimize` and `gatefx export` do: a model folder in, a folder out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import AdapterConfig, Budget, Budgets, Flops, resolve_share
from ..errors import BudgetError, InputError, UntrainedGateError
from ..models.configs.catalogue import resolve_methods
from ..models.configs.ccm import CCM
from ..models.configs.gatera import GateRA
from ..runtime.artifact import Artifact
from .console import Stages, messages
from .model_folder import ModelFolder, check_target, open_model_folder
from .texts import read_texts

DEFAULT = CCM.method
"""Of an adapter without gates, where no method is named."""

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ..exporting_decoder import Generate
    from ..passes.deployed import DeployedModel
    from ..passes.gated import GatedModel

    Batches = list[dict[str, Tensor]]


_FLOPS = "flops"


@dataclass(frozen=True)
class CompileRequest:
    """The options that both commands share; see their --help."""

    model: Path
    out: Path
    methods: tuple[str, ...]
    budget: Budgets | None
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


def parse_sizes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """Sizes as a person typed them, one axis each: "batch=1:8:32".

    Raises:
        InputError: no such text. Whether the sizes fit the model, the library judges.
    """
    found = {}
    for text in texts or ():
        axis, _, numbers = text.partition("=")
        parts = numbers.split(":")
        if not axis or axis in found or not all(part.strip().isdecimal() for part in parts):
            raise InputError(
                "These are no sizes of an axis.", given=text, expected="for example batch=1:8:32, every axis once"
            )
        found[axis] = tuple(map(int, parts))
    return found or None


def parse_adapters(texts: Sequence[str] | None) -> dict[str, Path] | None:
    """Adapters as a person typed them: "tweets=FOLDER".

    Raises:
        InputError: no such text, or a name that is given twice.
    """
    pairs = [text.partition("=") for text in texts or ()]
    odd = [f"{name}{equals}{folder}" for name, equals, folder in pairs if not (name and folder)]
    if odd or len({name for name, _, _ in pairs}) < len(pairs):
        raise InputError(
            "Adapters have a name and a folder each.",
            given=" ".join(odd or texts or ()),
            expected="for example tweets=out/tweets, every name once",
        )
    return {name: Path(folder) for name, _, folder in pairs} or None


def parse_budgets(texts: Sequence[str] | None) -> Budgets | None:
    """Budgets as a person typed them: one, or one per method as "ccm=6".

    Raises:
        BudgetError: several that do not name their methods.
    """
    if not texts:
        return None
    named = dict(text.split("=", 1) for text in texts if "=" in text)
    if not named and len(texts) == 1:
        return parse_budget(texts[0])
    if len(named) < len(texts):
        raise BudgetError(
            "Several budgets name a method each.", given=" ".join(texts), expected="for example ccm=6 masklora=0.5"
        )
    return {name: parse_budget(text) for name, text in named.items()}


def parse_budget(text: str) -> Budget:
    """A budget as a person typed it: "6" counts, "0.4" and "40%" are shares, "40%flops" is one of FLOPs.

    The library judges the rest.
    """
    if text.lower().endswith(_FLOPS):
        return Flops(resolve_share(_number(text[: -len(_FLOPS)].strip()), unit="of the FLOPs"))
    return _number(text)


def _number(text: str) -> int | float | str:
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
        for name, method in gated.methods.items():
            method.budget = deployed.calibrated_budgets[name]
            method.keep_calibration(gated.graph_module, deployed.decisions[name])
        gated.save_pretrained(request.out, overwrite=request.overwrite)
    return deployed


def run_export(
    request: CompileRequest, opset: int, *, generate: Generate = False, adapters: Mapping[str, Path] | None = None
) -> DeployedModel:
    """Deploy the model and write it as an ONNX artifact to `request.out`.

    Args:
        generate, adapters: as of `gatefx.export`.

    Raises:
        GatefxError: a request that makes no sense, or a model that cannot be compiled or exported.
    """
    deployed, tokenizer, stages = _deployed(request)
    from ..exporting import export

    with stages.stage("lowering to ONNX"), _quiet():
        export(
            deployed, request.out, tokenizer=tokenizer, opset=opset, generate=generate, adapters=adapters,
            overwrite=request.overwrite,
        )  # fmt: skip
    return deployed


def run_export_tensorrt(
    request: CompileRequest,
    *,
    precision: Literal["fp32", "fp16", "bf16"],
    sizes: Mapping[str, Sequence[int]] | None,
    check: bool,
    through: Literal["onnx", "torch_tensorrt"],
    plugins: bool,
) -> DeployedModel:
    """Deploy the model and write what an engine is built from to `request.out`; options as of `gatefx.export`.

    Raises:
        GatefxError: a request that makes no sense, or a model that cannot be compiled, exported or built.
    """
    deployed, tokenizer, stages = _deployed(request)
    from ..exporting import export

    with stages.stage("lowering for TensorRT"), _quiet():
        export(
            deployed, request.out, backend="tensorrt", tokenizer=tokenizer, overwrite=request.overwrite,
            precision=precision, sizes=sizes, check=check, through=through, plugins=plugins,
        )  # fmt: skip
    return deployed


def _deployed(request: CompileRequest) -> tuple[DeployedModel, PreTrainedTokenizerBase, Stages]:
    """The optimized model that a request asks for, to be exported."""
    opened, stages = _open(request)
    with stages.stage("loading and optimizing the model", bars=True), _quiet():
        return _deploy(request, opened, _gated(request, opened)), opened.tokenizer, stages


def _open(request: CompileRequest) -> tuple[_Opened, Stages]:
    """Everything that can be refused without loading a model is refused first."""
    folder = open_model_folder(request.model, request.base)
    resolve_methods(request.methods or DEFAULT)
    if (
        request.budget is not None
        and not isinstance(request.budget, Mapping)
        and request.methods in ((), (CCM.method,))
    ):
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
    from ..fitting import fit_untrained, spend_flops
    from ..passes.methods.budgets import without_flops
    from ..preparing import build_gated
    from .model_loading import load_gated, load_peft

    folder = opened.folder
    if folder.manifest is not None:
        gated = load_gated(folder, opened.example)
        spend_flops(gated, request.budget, opened.batches)
        return gated
    gated = build_gated(
        load_peft(folder), _configs(request.methods), without_flops(request.budget),
        example_inputs=opened.example, attach=False, share_frozen=True,
    )  # fmt: skip
    spend_flops(gated, request.budget, opened.batches)
    fit_untrained(gated, opened.batches, steps=request.distill_steps)
    return gated


def _configs(names: tuple[str, ...]) -> tuple[AdapterConfig, ...]:
    """The methods by name, for an adapter that is LoRA: a name says gatera, and only its options say which update."""
    configs = resolve_methods(names or DEFAULT)
    return tuple(replace(config, update="lora") if isinstance(config, GateRA) else config for config in configs)


def _deploy(request: CompileRequest, opened: _Opened, gated: GatedModel) -> DeployedModel:
    from ..deploy import optimize
    from ..passes.methods.budgets import without_flops

    # What was in FLOPs is spent: it is the gated model's own schedule by now.
    return optimize(
        gated, budget=without_flops(request.budget), data=opened.batches, fold=request.fold,
        freeze_static=request.freeze_static, forms=request.forms,
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
    if remains := Artifact.open(request.out, verify=False).manifest.get("remains"):
        result["remains"] = remains
    if deployed.calibration is not None:
        result["ranks"] = asdict(deployed.calibration.ranks)
    return result
