"""Sizes of the small random models, family by family: two layers, 32 channels, 4 heads, vocabulary 100."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

VOCABULARY = 100
# Below it are the special tokens of every family; drawn tokens start here.
FIRST_WORD = 5
LONGEST = 128
# Wide enough that attention is far from uniform and a wrong row shows in the logits; 0.02 would hide both.
SPREAD = 0.2

_Sizes = Mapping[str, Any]
_BASE: _Sizes = MappingProxyType(
    {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": SPREAD,
    }
)
_ENCODER: _Sizes = MappingProxyType({**_BASE, "max_position_embeddings": LONGEST, "pad_token_id": 0})
# RoBERTa and MPNet count positions from pad_token_id + 1.
_SHIFTED: _Sizes = MappingProxyType({**_BASE, "max_position_embeddings": LONGEST + 2, "pad_token_id": 1})
_DECODER: _Sizes = MappingProxyType(
    {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
)

_T5: _Sizes = MappingProxyType(
    {
        "vocab_size": VOCABULARY,
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
    }
)
_BART: _Sizes = MappingProxyType(
    {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": LONGEST,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "init_std": SPREAD,
        "use_cache": False,
    }
)
_VIT: _Sizes = MappingProxyType(
    {
        **{name: size for name, size in _BASE.items() if name != "vocab_size"},
        "image_size": 32,
        "patch_size": 8,
    }
)

#: Families that most tests build.
CONFIGS: Mapping[str, _Sizes] = MappingProxyType(
    {
        "bert": _ENCODER,
        "roberta": _SHIFTED,
        "distilbert": {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": LONGEST,
            "pad_token_id": 0,
            "initializer_range": SPREAD,
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
        "t5": _T5,
        "bart": _BART,
        "gpt2": {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": LONGEST,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": SPREAD,
            "use_cache": False,
        },
        "llama": _DECODER,
        "mistral": {**_DECODER, "sliding_window": 16},
        "qwen3": _DECODER,
        "vit": _VIT,
    }
)


#: Families that few tests build; the table of families and methods builds them all.
FURTHER_CONFIGS: Mapping[str, _Sizes] = MappingProxyType(
    {
        "xlm-roberta": _SHIFTED,
        "camembert": _SHIFTED,
        "ernie": _ENCODER,
        "rembert": {**_ENCODER, "input_embedding_size": 16, "output_embedding_size": 16},
        "deberta": {
            **_ENCODER,
            "type_vocab_size": 0,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
        "fnet": _ENCODER,
        "longformer": {**_SHIFTED, "attention_window": [8, 8]},
        # Short inputs get full attention; the sparse kind wants lengths of many blocks.
        "big_bird": {**_ENCODER, "attention_type": "original_full"},
        "layoutlm": _ENCODER,
        "convbert": {**_ENCODER, "embedding_size": 32},
        "roformer": {**_ENCODER, "embedding_size": 32},
        "mt5": _T5,
        "mbart": _BART,
        "pegasus": _BART,
        "led": {
            **_BART,
            "attention_window": 8,
            "max_encoder_position_embeddings": LONGEST,
            "max_decoder_position_embeddings": LONGEST,
        },
        "deit": {**_VIT, "architectures": ["DeiTForImageClassification"]},
        "dinov2": _VIT,
        "whisper": {
            **_BART,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "classifier_proj_size": 16,
        },
        "wav2vec2": {
            **_BASE,
            "conv_dim": (16, 16),
            "conv_kernel": (4, 2),
            "conv_stride": (4, 2),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 16,
            "mask_time_prob": 0.0,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        },
        "opt": {
            **_ENCODER,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "init_std": SPREAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "use_cache": False,
        },
        "gpt_neox": {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False},
        "qwen2": _DECODER,
        "gemma": _DECODER,
        "phi": _DECODER,
        "bloom": {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "initializer_range": SPREAD,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "use_cache": False,
        },
        "falcon": {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False},
    }
)
