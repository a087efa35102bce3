"""export and load: a deployed model → one artifact folder → a session that runs it; or one file for torch alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, MethodError
from .exporting_decoder import DECODER, write_decoder
from .passes.decision import RuntimeBudget
from .passes.deployed import DeployedModel
from .passes.graph.signature import Signature, example_for
from .passes.lower.aotinductor import save_aotinductor
from .passes.lower.onnx import DEFAULT_OPSET, lower_to_onnx, save_onnx
from .runtime.artifact import Artifact, ArtifactWriter
from .runtime.exported_model import write_exported_model_files
from .runtime.sessions.decoder import OnnxDecoder
from .runtime.sessions.onnxruntime import OnnxSession

_AOTINDUCTOR = "aotinductor"
_BACKENDS = ("onnxruntime", _AOTINDUCTOR)
_KIND = "model"


def export(
    model: DeployedModel,
    folder: str | Path,
    backend: str = "onnxruntime",
    *,
    tokenizer: Any = None,
    opset: int = DEFAULT_OPSET,
    overwrite: bool = False,
    generate: bool = False,
) -> Path:
    """Write a deployed model as one artifact folder, or as one file, whole or not at all.

    The folder holds an ONNX model that plain ONNX Runtime, `gatefx.load` and, for models of transformers, its
    `ExportedModel` open, and a manifest with the SHA-256 of every file. The file, of "aotinductor", is compiled for
    this machine's kind of CPU and this torch, with the budget in force; `torch._inductor.aoti_load_package` opens it
    where gatefx is not installed, and calls it with the inputs in the order of `model.signature`.

    Args:
        model: what `optimize` returned; folder: where to, for "aotinductor" a file that ends in `.pt2`.
        backend: "onnxruntime" or "aotinductor", which takes neither tokenizer nor opset nor generate.
        tokenizer: saved beside the model if given.
        opset: version of standard ONNX; overwrite: replace an artifact that is already there.
        generate: write a decoder's prefill and decode, with their cache, for `gatefx.generate(gatefx.load(folder), …)`,
            instead of the graph over whole texts.

    Raises:
        InputError: a model that is not deployed, or cannot generate; MethodError: an unknown backend.
        ArtifactError: the folder exists; CaptureError: an operator without ONNX form.
        MissingDependencyError: no C++ compiler for "aotinductor".
    """
    _check_request(model, backend, tokenizer)
    if backend == _AOTINDUCTOR:
        _check_file_request(tokenizer, opset, generate)
        return save_aotinductor(model.graph_module, _example(model), Path(folder).absolute(), overwrite=overwrite)
    levels = _runtime_buffers(model)
    with ArtifactWriter(folder, overwrite=overwrite) as writer:
        description = _description(model, model.signature, levels, opset)
        if generate:
            description |= write_decoder(model, writer.path, levels, opset=opset)
        else:
            _write_model(model, writer.path, levels, opset=opset)
        if tokenizer is not None:
            tokenizer.save_pretrained(writer.path)
        return writer.commit(description).path


def _write_model(model: DeployedModel, folder: Path, levels: Mapping[str, RuntimeBudget], *, opset: int) -> None:
    """The graph over whole inputs, with what transformers' `ExportedModel` reads."""
    signature = model.signature
    example = _example(model)
    graph = lower_to_onnx(
        model.graph_module,
        example,
        signature.outputs,
        opset=opset,
        overridable=tuple(r.buffer for r in levels.values()),
    )
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


def _example(model: DeployedModel) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in example_for(model.signature).items()}


def _check_request(model: object, backend: str, tokenizer: Any) -> None:
    """Refuse what cannot be exported before anything is written.

    Raises:
        InputError, MethodError: as `export`.
    """
    if backend not in _BACKENDS:
        raise MethodError(
            f"There is no backend {backend!r}.", given=f"backend={backend!r}", expected=", ".join(map(repr, _BACKENDS))
        )
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


def _check_file_request(tokenizer: Any, opset: int, generate: bool) -> None:
    """Refuse what a file of machine code cannot hold.

    Raises:
        InputError: a tokenizer, an opset, or the graphs that generate.
    """
    odd = {"tokenizer": tokenizer is not None, "opset": opset != DEFAULT_OPSET, "generate": generate}
    if any(odd.values()):
        raise InputError(
            "A file of AOTInductor holds one graph of one model.",
            given=", ".join(name for name, asked in odd.items() if asked),
            expected='none of these options with backend="aotinductor"',
            remedy='leave them out, or export with backend="onnxruntime"',
        )


def load(
    folder: str | Path, *, provider: str = "cpu", threads: int | None = None, native: bool | None = None
) -> OnnxSession:
    """Open an artifact folder: every hash is checked, and the session says which provider it really got.

    A folder that was written with `generate=True` opens as a decoder for `gatefx.generate`.

    Args:
        folder: what `export` wrote; provider: "cpu", "cuda", "tensorrt" or ONNX Runtime's own name.
        threads: of ONNX Runtime's pool; None leaves it to ONNX Runtime.
        native: run gatefx's operators by the native kernels; None: where they are built; True: or fail; False: never.

    Raises:
        ArtifactError: a missing, truncated or edited folder, or one that holds gates instead of a model.
        ProviderError: the provider is not what the session would run on, or has no native kernels that were asked for.
    """
    artifact = Artifact.open(folder)
    if artifact.manifest.get("kind") == DECODER:
        return OnnxDecoder.open(artifact, provider=provider, threads=threads, native=native)
    if artifact.manifest.get("kind") != _KIND:
        raise InputError(
            "The folder holds no exported model.",
            given=f"{folder}, kind {artifact.manifest.get('kind')!r}",
            expected="a folder that gatefx.export wrote",
            remedy="open saved gates with gatefx.from_pretrained(base_model, folder, example_inputs=batch)",
        )
    return OnnxSession.open(artifact, provider=provider, threads=threads, native=native)


def _runtime_buffers(model: DeployedModel) -> dict[str, RuntimeBudget]:
    """By method, the buffers that may be replaced when the exported model is called."""
    runtimes = {name: model.decisions[name].runtime for name in model.changeable()}
    return {name: runtime for name, runtime in runtimes.items() if runtime is not None}


def _description(
    model: DeployedModel, signature: Signature, levels: Mapping[str, RuntimeBudget], opset: int
) -> dict[str, Any]:
    description: dict[str, Any] = {
        "kind": _KIND,
        "methods": {
            name: {"options": dataclasses.asdict(config), "budget": model.budgets[name]}
            for name, config in model.methods.items()
        },
        "budget": model.budget,
        "backend": "onnxruntime",
        "opset": opset,
        **signature.described(),
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
