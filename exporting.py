"""export: a deployed model → one artifact folder that `gatefx.load` opens, or one file for torch alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, MethodError
from .exporting_adapters import OpenModel, open_model
from .exporting_decoder import OPTIMUM, Generate, check_generate, write_decoder
from .exporting_tensorrt import EngineRequest, Through, check_engine_request, write_tensorrt
from .passes.decision import RuntimeBudget
from .passes.deployed import DeployedModel
from .passes.graph.signature import example_for
from .passes.lower.aotinductor import save_aotinductor
from .passes.lower.onnx import DEFAULT_OPSET, lower_to_onnx, save_onnx
from .passes.lower.onnx_precision import Precision
from .passes.lower.open_adapters import free_ranks, open_adapters
from .runtime.artifact import ArtifactWriter
from .runtime.exported_model import write_exported_model_files
from .runtime.manifest import MODEL, ONNXRUNTIME, TENSORRT

_AOTINDUCTOR = "aotinductor"
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    ONNXRUNTIME: ("tokenizer", "opset", "generate", "adapters"),
    TENSORRT: ("tokenizer", "opset", "precision", "sizes", "check", "through", "plugins"),
    _AOTINDUCTOR: (),
}
"""Backend → the options that it takes."""


def export(  # noqa: PLR0913  # the front door: each is a documented option
    model: DeployedModel,
    folder: str | Path,
    backend: str = ONNXRUNTIME,
    *,
    tokenizer: Any = None,
    opset: int | None = None,
    overwrite: bool = False,
    generate: Generate = False,
    adapters: Mapping[str, DeployedModel | str | Path] | None = None,
    precision: Precision = "fp32",
    sizes: Mapping[str, Sequence[int]] | None = None,
    check: bool = False,
    through: Through = "onnx",
    plugins: bool = False,
) -> Path:
    """Write a deployed model as one artifact folder, or as one file, whole or not at all.

    For "onnxruntime" the folder holds an ONNX model that plain ONNX Runtime, `gatefx.load` and, for models of
    transformers, its `ExportedModel` open, and a manifest with the SHA-256 of every file. For "tensorrt" it holds the
    ONNX model that TensorRT takes, with the budget in force, its profile of sizes, and scripts that build the engine
    where TensorRT and a GPU are; or the program that torch-tensorrt takes. The file, of "aotinductor", is compiled for
    this machine's kind of CPU and this torch, with the budget in force; `torch._inductor.aoti_load_package` opens it
    where gatefx is not installed, and calls it with the inputs in the order of `model.signature`.

    Args:
        model: what `optimize` returned; folder: where to, for "aotinductor" a file that ends in `.pt2`.
        backend: "onnxruntime", "tensorrt" or "aotinductor".
        tokenizer: saved beside the model if given; overwrite: replace an artifact that is already there.
        opset: version of standard ONNX, of "onnxruntime" 23 and of "tensorrt" 20 if not given.
        generate: "onnxruntime" only: write a decoder's prefill and decode, with their cache, for
            `gatefx.generate(gatefx.load(folder), …)`, instead of the graph over whole texts. "static": as True, with a
            cache whose size is fixed when a prompt is read (`max_cache_len`), and which steps write in place.
            "parts": as True, and a third graph by which masklora drops tokens of prompts that are read in parts.
            "optimum": one graph with its cache, that Optimum's `ORTModelForCausalLM` generates with, at the budget in
            force.
        adapters: "onnxruntime" only, for plain LoRA over one base model: name → folder in PEFT's format, or deployed
            model. Each becomes a file, and `session.run(arrays, adapter=name)` takes it instead of the model's own.
        precision: "tensorrt" only: "fp32", "fp16" or "bf16", of weights and activations; inputs and outputs stay fp32.
        sizes: "tensorrt" only: axis → its least size, the one to tune for, and the most, as {"batch": (1, 8, 32)}.
        check: "tensorrt" only: build the engine once on this machine's CPU by TensorRT for RTX, or raise; through
            torch-tensorrt, have it say that it takes the whole graph.
        through: "tensorrt" only: "onnx", or "torch_tensorrt", whose folder needs gatefx where its engine is built.
        plugins: "tensorrt" only: gated and routed operators stay nodes that plugins answer, whose kernels Triton
            compiles into the folder; no GPU has run them yet. Not given, they become standard operators.

    Raises:
        InputError: a model that is not deployed, or cannot generate; options that the backend does not take, or that
            do not go together.
        SiteError: `adapters` where the model or one of them is more than plain LoRA, or they do not fit.
        MethodError: an unknown backend.
        ArtifactError: the folder exists; CaptureError: an operator without ONNX form, or that TensorRT refuses.
        MissingDependencyError: no C++ compiler for "aotinductor"; no tensorrt-rtx or torch-tensorrt for `check`;
            no Triton for `plugins`.
        ProviderError: no GPU where torch-tensorrt needs one for `check`.
    """
    asked = {
        "tokenizer": tokenizer is not None, "opset": opset is not None, "generate": generate is not False,
        "adapters": adapters is not None, "precision": precision != "fp32", "sizes": sizes is not None, "check": check,
        "through": through != "onnx", "plugins": plugins,
    }  # fmt: skip
    _check_backend(backend, [option for option, given in asked.items() if given])
    _check_request(model, tokenizer)
    check_generate(generate)
    if backend == _AOTINDUCTOR:
        return save_aotinductor(model.graph_module, _example(model), Path(folder).absolute(), overwrite=overwrite)
    version = DEFAULT_OPSET if opset is None else opset
    engine = EngineRequest(opset, precision, sizes, check, through, plugins)
    if backend == TENSORRT:
        check_engine_request(model, engine)
    opened = open_model(model, adapters, generate=generate is not False)
    levels = _runtime_buffers(model) if backend == ONNXRUNTIME and generate != OPTIMUM else {}
    with ArtifactWriter(folder, overwrite=overwrite) as writer:
        description = _description(model, levels, backend=backend)
        if backend == TENSORRT:
            description |= write_tensorrt(model, writer.path, _example(model), engine)
        elif generate:
            description["opset"] = version
            description |= write_decoder(model, writer.path, levels, opset=version, generate=generate)
        else:
            description["opset"] = version
            description |= _write_model(model, writer.path, levels, opened, opset=version)
        if tokenizer is not None:
            tokenizer.save_pretrained(writer.path)
        return writer.commit(description).path


def _write_model(
    model: DeployedModel, folder: Path, levels: Mapping[str, RuntimeBudget], opened: OpenModel | None, *, opset: int
) -> dict[str, Any]:
    """The graph over whole inputs, with what transformers' `ExportedModel` reads; further fields of the manifest."""
    signature = model.signature
    example = _example(model)
    buffers = [runtime.buffer for runtime in levels.values()]
    graph = lower_to_onnx(
        model.graph_module if opened is None else open_adapters(model.graph_module),
        example,
        signature.outputs,
        opset=opset,
        overridable=buffers if opened is None else [*buffers, *opened.inputs],
    )
    if opened is not None:
        free_ranks(graph, opened.sites)
    save_onnx(graph, folder)
    if model.config is not None:
        write_exported_model_files(
            folder,
            architecture=signature.architecture,
            config=model.config,
            example=example,
            output_names=signature.outputs,
            output_class=signature.answer_type,
        )
    return {} if opened is None else opened.write(folder)


def _example(model: DeployedModel) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in example_for(model.signature).items()}


def _check_backend(backend: str, asked: Sequence[str]) -> None:
    """Refuse an unknown backend, and options asked for that it does not take.

    Raises:
        MethodError, InputError: as `export`.
    """
    if backend not in _OPTIONS:
        raise MethodError(
            f"There is no backend {backend!r}.", given=f"backend={backend!r}", expected=", ".join(map(repr, _OPTIONS))
        )
    if odd := [option for option in asked if option not in _OPTIONS[backend]]:
        takers = (other for other, options in _OPTIONS.items() if set(odd) <= set(options))
        raise InputError(
            f"The backend {backend!r} does not take these options.",
            given=", ".join(odd),
            expected=", ".join(_OPTIONS[backend]) or "no options",
            remedy=" or ".join(["leave them out", *(f'export with backend="{other}"' for other in takers)]),
        )


def _check_request(model: object, tokenizer: Any) -> None:
    """Refuse what cannot be exported before anything is written.

    Raises:
        InputError: as `export`.
    """
    if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise InputError(
            "The tokenizer cannot be saved.", given=repr(tokenizer), expected="a tokenizer object of transformers"
        )
    if not isinstance(model, DeployedModel):
        raise InputError(
            "Only a deployed model can be exported.",
            given=type(model).__name__,
            expected="what gatefx.optimize returned",
            remedy="call gatefx.optimize(model, data=calibration) first",
        )
    odd = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32})
    if odd:
        raise InputError(
            "Only float32 models are exported: ONNX Runtime's CPU kernels miss operators for other types, and for "
            "AOTInductor they are untried.",
            given=f"parameters of {', '.join(odd).replace('torch.', '')}",
            expected="float32",
            remedy="deploy a float32 model: gatefx.optimize(gated.float(), data=…)",
        )


def _runtime_buffers(model: DeployedModel) -> dict[str, RuntimeBudget]:
    """By method, the buffers that may be replaced when the exported model is called."""
    runtimes = {name: model.decisions[name].runtime for name in model.changeable()}
    return {name: runtime for name, runtime in runtimes.items() if runtime is not None}


def _description(model: DeployedModel, levels: Mapping[str, RuntimeBudget], *, backend: str) -> dict[str, Any]:
    description: dict[str, Any] = {
        "kind": MODEL,
        "methods": {
            name: {"options": dataclasses.asdict(config), "budget": model.budgets[name]}
            for name, config in model.methods.items()
        },
        "budget": model.budget,
        "backend": backend,
        **model.signature.described(),
        "sites": [site.to_json() for site in model.sites],
        "report": model.report.to_json(),
    }
    if model.calibration is not None and "ccm" in levels and model.budgets == model.calibrated_budgets:
        description["ranks"] = dataclasses.asdict(model.calibration.ranks)
    if model.recovery is not None:
        rule = model.recovery
        description["recovery"] = {"output": rule.output, "bound": rule.bound, "initializer": rule.buffer}
    if levels:
        description["runtime_budgets"] = {
            name: {"initializer": runtime.buffer, "table": [list(row) for row in runtime.table], "unit": runtime.unit}
            for name, runtime in levels.items()
        }
    return description
