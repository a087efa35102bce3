"""Which tokens of a sentence an exported model keeps after each cut: read from its own `SelectTokens` nodes.

What tokens update is decided inside the engine's operators and not shown; saved gates show both (`heat_map.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, SiteError
from ..models.hf import quiet, transformers_for
from ..passes.find.layer_names import layer_of
from ..runtime.artifact import Artifact
from ..runtime.sessions.inside import OperatorCall, operator_calls, values_inside
from .heat_page import HeatRow, write_heat_map

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CUT = "SelectTokens"
_TOKENIZER = "tokenizer_config.json"


def write_artifact_map(folder: Path, text: str, out: Path) -> None:
    """Run the exported model of `folder` on `text` and write the heat map to `out`.

    Raises:
        SiteError: as `artifact_heat_rows`; InputError: no tokenizer in the folder, or a model of other inputs.
    """
    artifact = Artifact.open(folder)
    tokenizer = artifact_tokenizer(artifact)
    encoded = tokenizer(text, return_tensors="np", truncation=True)
    inputs = {name: encoded[name] for name in artifact.manifest["inputs"] if name in encoded}
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    title = f"Tokens that {', '.join(artifact.manifest['methods'])} keeps"
    write_heat_map(artifact_heat_rows(artifact, inputs), tokens, out, title=title)


def artifact_heat_rows(artifact: Artifact, arrays: Mapping[str, Any]) -> tuple[HeatRow, ...]:
    """A row per cut of one sentence, inputs of batch 1, at the budget of the export.

    Raises:
        SiteError: the model cuts no tokens, or not in a way that its graph shows.
    """
    cuts = operator_calls(artifact, _CUT)
    if not cuts:
        raise SiteError(
            "No cut of this exported model can be read: none of its operators selects tokens.",
            given=f"{artifact.path}, methods {', '.join(artifact.manifest['methods'])}",
            expected="a model with masklora that keeps less than everything",
            remedy="pass the folder of saved gates: it shows the tokens that take updates too (tspeft, gatera)",
        )
    names = [name for cut in cuts for name in (cut.inputs[0], *cut.outputs)]
    values = values_inside(artifact, names, arrays)
    labels = [_label(artifact, cut, index) for index, cut in enumerate(cuts)]
    kept = _kept(cuts, values)
    return tuple(HeatRow(label, "kept", tuple(row.tolist())) for label, row in zip(labels, kept, strict=True))


def _kept(cuts: tuple[OperatorCall, ...], values: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """(T,) after each cut: 1 at tokens that are left. Positions count what the cut before left, or all T if masked."""
    total = values[cuts[0].inputs[0]].shape[1]
    places = np.arange(total)
    for cut in cuts:
        seen = values[cut.inputs[0]].shape[1]
        indices, valid = (values[name][0] for name in cut.outputs)
        chosen = indices[valid]
        places = places[chosen] if seen == len(places) else np.intersect1d(places, chosen)
        alive = np.zeros(total)
        alive[places] = 1.0
        yield alive


def _label(artifact: Artifact, cut: OperatorCall, index: int) -> str:
    """The cut's layer as calibration names it, else the layer whose module it stands behind."""
    known = artifact.manifest.get("report", {}).get("facts", {}).get("masklora", {}).get("cuts", ())
    if index < len(known):
        return f"kept after layer {known[index]['layer']}"
    number = layer_of(cut.module).rpartition(".")[2]
    return f"kept after layer {int(number) + 1}" if number.isdigit() else f"kept after cut {index + 1}"


def artifact_tokenizer(artifact: Artifact) -> PreTrainedTokenizerBase:
    """The tokenizer that was exported with a model.

    Raises:
        InputError: none was.
    """
    # Without its files transformers would make an empty one from the model's config.
    if _TOKENIZER not in artifact.manifest["files"]:
        raise InputError(
            "The folder holds no tokenizer, so a text cannot be turned into the model's inputs.",
            given=f"{artifact.path} without {_TOKENIZER}",
            expected="a model that was exported with its tokenizer",
            remedy="gatefx.export(model, folder, tokenizer=tokenizer), or gatefx export onnx",
        )
    transformers = transformers_for("reading a tokenizer")
    with quiet(transformers):
        found: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(str(artifact.path))
        return found
