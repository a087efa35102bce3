"""Seeded small random models of many families, built offline in well under a second, and inputs that fit them.

    model = tiny("deberta-v2", num_labels=3, seed=1)
    batch = tiny_inputs(model, batch=2, tokens=7)
    logits = model(**batch).logits

They stand in for architectures of which no package ships weights. Their sizes stand in `tiny_configs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from .hf import quiet, transformers_for
from .tiny_configs import CONFIGS, FIRST_WORD, FURTHER_CONFIGS, LONGEST, SPREAD, VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALL: Mapping[str, Mapping[str, Any]] = {**CONFIGS, **FURTHER_CONFIGS}
FAMILIES: tuple[str, ...] = tuple(CONFIGS)
ALL_FAMILIES: tuple[str, ...] = tuple(_ALL)
# Their classification heads gather at the end-of-sequence token, whose count is data: no static graph holds them.
SEQUENCE_TO_SEQUENCE = frozenset({"t5", "mt5", "bart", "mbart", "pegasus", "led"})
_IMAGES = frozenset({"vit", "deit", "dinov2"})
_AUDIO = frozenset({"whisper", "wav2vec2"})
# Samples that one frame of the small wav2vec2 covers, and frames of a Whisper spectrum per position.
_SAMPLES, _FRAMES = 8, 2


#: Decoders of one stack that `tiny_decoder` builds.
DECODERS: tuple[str, ...] = ("llama", "mistral", "qwen3", "qwen2", "gemma", "gpt2", "gpt_neox", "phi", "opt", "bloom")


def tiny_decoder(family: str, seed: int = 0) -> PreTrainedModel:
    """A random language model of `family`, one of DECODERS, in eval mode and float32: logits (B, T, vocabulary).

    Raises:
        InputError: a family that is no such decoder; MissingDependencyError: transformers is not installed.
    """
    if family not in DECODERS:
        raise InputError("No small decoder of this family.", given=repr(family), expected=", ".join(DECODERS))
    return _built(family, "AutoModelForCausalLM", seed)


def tiny(family: str, num_labels: int = 2, seed: int = 0) -> PreTrainedModel:
    """A random model of `family` in eval mode and float32.

    Classifiers of texts, images or sounds with logits (B, num_labels), except those in SEQUENCE_TO_SEQUENCE, which
    generate: logits (B, U, vocabulary), and `num_labels` says nothing. Biases and norm scales are random too, so
    that one that gets lost shows.

    Args:
        family: one of ALL_FAMILIES; tests that take every family take those in FAMILIES.
        num_labels: C.
        seed: of the weights; the caller's random state is left as it was.

    Raises:
        InputError: an unknown family.
        MissingDependencyError: transformers is not installed.
    """
    if family not in _ALL:
        raise _unknown(family)
    return _built(family, _auto_class(family), seed, num_labels=num_labels)


def _built(family: str, auto_class: str, seed: int, **options: int) -> PreTrainedModel:
    transformers = transformers_for("building a small model")
    kind = getattr(transformers, auto_class)
    config = transformers.AutoConfig.for_model(family, **_ALL[family], **options)
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32).eval()
        _perturb_vectors(model)
    return model


def _auto_class(family: str) -> str:
    if family in SEQUENCE_TO_SEQUENCE:
        return "AutoModelForSeq2SeqLM"
    kinds = {**dict.fromkeys(_IMAGES, "Image"), **dict.fromkeys(_AUDIO, "Audio")}
    return f"AutoModelFor{kinds.get(family, 'Sequence')}Classification"


def _unknown(family: str) -> InputError:
    return InputError("No small model of this family.", given=repr(family), expected=", ".join(ALL_FAMILIES))


@torch.no_grad()
def _perturb_vectors(model: torch.nn.Module) -> None:
    """Move biases off zero and norm scales off one."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=SPREAD)


def tiny_inputs(
    model: str | PreTrainedModel, batch: int = 2, tokens: int = 7, seed: int = 0, ragged: bool = True
) -> dict[str, Tensor]:
    """Keyword inputs of a small model.

    Args:
        model: a family, or a model made by `tiny`.
        batch: B.
        tokens: T, at most 128; images and Whisper's spectra have one size whatever it says.
        seed: of what is drawn; the caller's random state is left as it was.
        ragged: the first row is full, the others end early, with at least one token; padding is on the right.

    Returns:
        input_ids and attention_mask (B, T), in FNet the former alone; for those in SEQUENCE_TO_SEQUENCE also
        decoder_input_ids (B, U), U = T // 2 + 1, without padding. Images are pixel_values (B, 3, 32, 32), Whisper's
        spectra input_features (B, 8, 32), wav2vec2's samples input_values and attention_mask (B, 8·T).

    Raises:
        InputError: an unknown family, or sizes out of range.
    """
    family = model if isinstance(model, str) else model.config.model_type
    if family not in _ALL:
        raise _unknown(family)
    if batch < 1 or not 1 <= tokens <= LONGEST:
        raise InputError(
            "A small model cannot take these sizes.",
            given=f"batch={batch}, tokens={tokens}",
            expected=f"batch of 1 or more, 1 to {LONGEST} tokens",
        )
    random = torch.Generator().manual_seed(seed)
    sizes = _ALL[family]
    if family in _IMAGES:
        width = sizes["image_size"]
        return {"pixel_values": torch.randn(batch, 3, width, width, generator=random)}
    if family == "whisper":
        frames = _FRAMES * sizes["max_source_positions"]
        return {"input_features": torch.randn(batch, sizes["num_mel_bins"], frames, generator=random)}
    lengths = torch.full((batch,), tokens)
    if ragged and tokens > 1:
        lengths[1:] = torch.randint(1, tokens, (batch - 1,), generator=random)
    if family == "wav2vec2":
        mask = torch.arange(_SAMPLES * tokens) < _SAMPLES * lengths[:, None]
        return {"input_values": torch.randn(mask.shape, generator=random) * mask, "attention_mask": mask.long()}
    return _texts(family, lengths, random)


def _texts(family: str, lengths: Tensor, random: torch.Generator) -> dict[str, Tensor]:
    sizes, batch, tokens = _ALL[family], len(lengths), int(lengths.max())
    mask = torch.arange(tokens) < lengths[:, None]
    words = torch.randint(FIRST_WORD, VOCABULARY, (batch, tokens), generator=random)
    if family == "fnet":
        return {"input_ids": words}
    inputs = {"input_ids": words.masked_fill(~mask, sizes["pad_token_id"]), "attention_mask": mask.long()}
    if family in SEQUENCE_TO_SEQUENCE:
        answer = torch.randint(FIRST_WORD, VOCABULARY, (batch, tokens // 2 + 1), generator=random)
        answer[:, 0] = sizes["decoder_start_token_id"]
        inputs["decoder_input_ids"] = answer
    return inputs
