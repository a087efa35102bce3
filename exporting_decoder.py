"""export(…, generate=…): a deployed decoder → prefill and decode in one artifact folder, or one graph for Optimum.

Of an encoder-decoder, `model.onnx` is the encoder and `decode.onnx` the decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import fx

from .errors import InputError
from .models.families import ATTENTION_MASK
from .passes.decision import RuntimeBudget
from .passes.decode.engine import facts_of, required_programs
from .passes.decode.one_graph import IDS, POSITIONS, one_graph
from .passes.deployed import DeployedModel
from .passes.graph.signature import signature_of
from .passes.lower.onnx import lower_to_onnx, save_onnx
from .passes.lower.onnx_decoder import lower_decoder_graph, save_decoder
from .passes.lower.onnx_names import rename_axes
from .runtime.cache_names import DECODE_FILE, GROWING, PART_FILE, STATIC
from .runtime.manifest import DECODER, OPTIMUM_DECODER

OPTIMUM: Literal["optimum"] = "optimum"
PARTS: Literal["parts"] = "parts"
Generate = bool | Literal["static", "parts", "optimum"]
"""Of `export`: neither, gatefx's own two graphs with a cache that grows or one of fixed size, a third that reads
prompts in parts, or one graph for Optimum."""


def check_generate(generate: object) -> None:
    """Refuse what is no `Generate`.

    Raises:
        InputError: as said.
    """
    known = (True, False, STATIC, PARTS, OPTIMUM)
    if generate not in known:
        expected = ", ".join(map(repr, known))
        raise InputError("generate= has no such value.", given=repr(generate), expected=f"one of {expected}")


def write_decoder(
    model: DeployedModel, folder: Path, levels: Mapping[str, RuntimeBudget], *, opset: int, generate: Generate = True
) -> dict[str, Any]:
    """Write both models to `folder`, or the one for Optimum; the manifest's fields that say what they are.

    Args:
        levels: by method, the buffers by which budgets act; generate: which of the two.

    Raises:
        InputError: the model cannot generate; GatefxError: as `lower_to_onnx`.
    """
    if generate == OPTIMUM:
        return _write_for_optimum(model, folder, opset=opset)
    programs = required_programs(model)
    buffers = tuple(runtime.buffer for runtime in levels.values())
    form = STATIC if generate == STATIC else GROWING
    step = programs.static_decode if form == STATIC else programs.decode
    facts = facts_of(model)
    graphs = {DECODE_FILE: step, **({PART_FILE: _part(model)} if generate == PARTS else {})}
    prefill = lower_decoder_graph(programs.prefill, buffers, opset=opset)
    others = {file: lower_decoder_graph(graph, buffers, opset=opset) for file, graph in graphs.items()}
    save_decoder(prefill, others, folder)
    return {
        "kind": DECODER,
        **signature_of(step).described(),
        "decoder": {
            "vocabulary": facts.vocabulary,
            "positions": facts.positions,
            "stop": list(facts.stop),
            "pad": facts.pad,
            "start": list(facts.start),
            "chooses": dict(facts.chooses),
            "groups": list(programs.layout.groups),
            "cache": form,
            "streams": list(facts.streams) if generate == PARTS else [],
        },
    }


def _part(model: DeployedModel) -> fx.GraphModule:
    """The graph that reads prompts in parts.

    Raises:
        InputError: nothing in the model chooses among a part's tokens; PassError: it has no such form.
    """
    facts = facts_of(model)
    if not set(facts.chooses) & set(facts.streams):
        raise InputError(
            "No gate of this model chooses among the tokens of a part.",
            given=", ".join(model.methods),
            expected=f"a model of {' or '.join(facts.streams)}",
            remedy="export with generate=True, whose graphs read such a prompt in parts by gatefx.generate(…, chunk=n)",
        )
    return required_programs(model).part


def _write_for_optimum(model: DeployedModel, folder: Path, *, opset: int) -> dict[str, Any]:
    """Write the one graph that Optimum's `ORTModelForCausalLM` generates with, and its config; the manifest's fields.

    Raises:
        InputError: the model cannot generate, or keeps more than Optimum does; GatefxError: as `lower_to_onnx`.
    """
    found = one_graph(required_programs(model))
    example = {name: tensor.to(model.device) for name, tensor in found.example.items()}
    lowered = lower_to_onnx(found.graph_module, example, found.outputs, opset=opset)
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(example, ("batch", "heads", "past", "width"))
    axes |= {IDS: ("batch", "sequence"), POSITIONS: ("batch", "sequence"), ATTENTION_MASK: ("batch", "past + sequence")}
    rename_axes(lowered, axes)
    save_onnx(lowered, folder)
    config = copy.deepcopy(model.config)
    config.architectures, config.use_cache = [model.signature.architecture], True
    config.save_pretrained(folder)
    return {
        "kind": OPTIMUM_DECODER,
        "inputs": list(example),
        "outputs": list(found.outputs),
        "axes": {name: list(names) for name, names in axes.items()},
    }
