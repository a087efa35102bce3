"""Seeded small random models of many families, built offline in well under a second, and inputs that fit them.

    model = tiny("deberta-v2", num_labels=3, seed=1)
    batch = tiny_inputs(model, batch=2, tokens=7)
    logits = model(**batch).logits

They stand in for architectures of which no package ships weights. Two layers, 32 channels, 4 heads, vocabulary 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from .hf import quiet, transformers_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VOCABULARY = 100
# Below it are the special tokens of every family; drawn tokens start here.
_FIRST_WORD = 5
_LONGEST = 128
# Wide enough that attention is far from uniform and a wrong row shows in the logits; 0.02 would hide both.
_SPREAD = 0.2

_Sizes = Mapping[str, Any]
_BASE: _Sizes = MappingProxyType(
    {
        "vocab_size": _VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": _SPREAD,
    }
)
_ENCODER: _Sizes = MappingProxyType({**_BASE, "max_position_embeddings": _LONGEST, "pad_token_id": 0})
# RoBERTa and MPNet count positions from pad_token_id + 1.
_SHIFTED: _Sizes = MappingProxyType({**_BASE, "max_position_embeddings": _LONGEST + 2, "pad_token_id": 1})
_DECODER: _Sizes = MappingProxyType(
    {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
)

_CONFIGS: Mapping[str, _Sizes] = MappingProxyType(
    {
        "bert": _ENCODER,
        "roberta": _SHIFTED,
        "distilbert": {
            "vocab_size": _VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": _LONGEST,
            "pad_token_id": 0,
            "initializer_range": _SPREAD,
        },
        "electra": {**_ENCODER, "embedding_size": 16},
        "deberta-v2": {
            **_ENCODER,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 32,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
        "mpnet": _SHIFTED,
        "albert": {**_ENCODER, "embedding_size": 16},
        # One layer attends globally, the other within 4 tokens to each side.
        "modernbert": {
            **_ENCODER,
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            "bos_token_id": 1,
            "cls_token_id": 1,
            "eos_token_id": 2,
            "sep_token_id": 2,
        },
        "t5": {
            "vocab_size": _VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
            "use_cache": False,
        },
        "bart": {
            "vocab_size": _VOCABULARY,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": _LONGEST,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "init_std": _SPREAD,
            "use_cache": False,
        },
        "gpt2": {
            "vocab_size": _VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": _LONGEST,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": _SPREAD,
            "use_cache": False,
        },
        "llama": _DECODER,
        "mistral": {**_DECODER, "sliding_window": 16},
        "qwen3": _DECODER,
        "vit": {
            **{name: size for name, size in _BASE.items() if name != "vocab_size"},
            "image_size": 32,
            "patch_size": 8,
        },
    }
)

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)
# Their classification heads gather at the end-of-sequence token, whose count is data: no static graph holds them.
_SEQUENCE_TO_SEQUENCE = frozenset({"t5", "bart"})


def tiny(family: str, num_labels: int = 2, seed: int = 0) -> PreTrainedModel:
    """A random model of `family` in eval mode and float32.

    Sequence classifiers with logits (B, num_labels), except "vit", an image classifier, and "t5" and "bart", which
    generate: logits (B, U, vocabulary), and `num_labels` says nothing. Biases and norm scales are random too, so
    that one that gets lost shows.

    Args:
        family: one of FAMILIES.
        num_labels: C.
        seed: of the weights; the caller's random state is left as it was.

    Raises:
        InputError: an unknown family.
        MissingDependencyError: transformers is not installed.
    """
    sizes = _CONFIGS.get(family)
    if sizes is None:
        raise _unknown(family)
    transformers = transformers_for("building a small model")
    kind = transformers.AutoModelForSequenceClassification
    if family == "vit":
        kind = transformers.AutoModelForImageClassification
    elif family in _SEQUENCE_TO_SEQUENCE:
        kind = transformers.AutoModelForSeq2SeqLM
    config = transformers.AutoConfig.for_model(family, **sizes, num_labels=num_labels)
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32).eval()
        _perturb_vectors(model)
    return model


def _unknown(family: str) -> InputError:
    return InputError("No small model of this family.", given=repr(family), expected=", ".join(FAMILIES))


@torch.no_grad()
def _perturb_vectors(model: torch.nn.Module) -> None:
    """Move biases off zero and norm scales off one."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=_SPREAD)


def tiny_inputs(
    model: str | PreTrainedModel, batch: int = 2, tokens: int = 7, seed: int = 0, ragged: bool = True
) -> dict[str, Tensor]:
    """Keyword inputs of a small model.

    Args:
        model: a family, or a model made by `tiny`.
        batch: B.
        tokens: T, at most 128; images are 32 pixels wide whatever it says.
        seed: of what is drawn; the caller's random state is left as it was.
        ragged: the first row is full, the others end early, with at least one token; padding is on the right.

    Returns:
        input_ids and attention_mask (B, T); for "t5" and "bart" also decoder_input_ids (B, U), U = T // 2 + 1,
        without padding; for "vit" only pixel_values (B, 3, 32, 32).

    Raises:
        InputError: an unknown family, or sizes out of range.
    """
    family = model if isinstance(model, str) else model.config.model_type
    if family not in _CONFIGS:
        raise _unknown(family)
    if batch < 1 or not 1 <= tokens <= _LONGEST:
        raise InputError(
            "A small model cannot take these sizes.",
            given=f"batch={batch}, tokens={tokens}",
            expected=f"batch of 1 or more, 1 to {_LONGEST} tokens",
        )
    random = torch.Generator().manual_seed(seed)
    sizes = _CONFIGS[family]
    if family == "vit":
        width = sizes["image_size"]
        return {"pixel_values": torch.randn(batch, 3, width, width, generator=random)}
    lengths = torch.full((batch,), tokens)
    if ragged and tokens > 1:
        lengths[1:] = torch.randint(1, tokens, (batch - 1,), generator=random)
    mask = torch.arange(tokens) < lengths[:, None]
    words = torch.randint(_FIRST_WORD, _VOCABULARY, (batch, tokens), generator=random)
    inputs = {"input_ids": words.masked_fill(~mask, sizes["pad_token_id"]), "attention_mask": mask.long()}
    if family in _SEQUENCE_TO_SEQUENCE:
        answer = torch.randint(_FIRST_WORD, _VOCABULARY, (batch, tokens // 2 + 1), generator=random)
        answer[:, 0] = sizes["decoder_start_token_id"]
        inputs["decoder_input_ids"] = answer
    return inputs
