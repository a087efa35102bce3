"""export(…, generate=True): a deployed decoder → prefill and decode in one artifact folder.

Of an encoder-decoder, `model.onnx` is the encoder and `decode.onnx` the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .passes.decision import RuntimeBudget
from .passes.decode.engine import facts_of, required_programs
from .passes.deployed import DeployedModel
from .passes.graph.signature import signature_of
from .passes.lower.onnx_decoder import lower_decoder_graph, save_decoder

DECODER = "decoder"


def write_decoder(
    model: DeployedModel, folder: Path, levels: Mapping[str, RuntimeBudget], *, opset: int
) -> dict[str, Any]:
    """Write both models to `folder`; the manifest's fields that say what they are.

    Args:
        levels: by method, the buffers by which budgets act.

    Raises:
        InputError: the model cannot generate; GatefxError: as `lower_to_onnx`.
    """
    programs = required_programs(model)
    buffers = tuple(runtime.buffer for runtime in levels.values())
    graphs = (programs.prefill, programs.decode)
    prefill, decode = (lower_decoder_graph(graph, buffers, opset=opset) for graph in graphs)
    save_decoder(prefill, decode, folder)
    facts = facts_of(model)
    return {
        "kind": DECODER,
        **signature_of(programs.decode).described(),
        "decoder": {
            "vocabulary": facts.vocabulary,
            "positions": facts.positions,
            "stop": list(facts.stop),
            "pad": facts.pad,
            "start": list(facts.start),
            "groups": list(programs.layout.groups),
        },
    }
