"""Decoders, ragged prompts on either side, and generation by two graphs in a dozen lines, to hold passes against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs
from gatefx.passes.chain import Chain
from gatefx.passes.decode.answer import ReadAnswer
from gatefx.passes.decode.append import ReadCache
from gatefx.passes.decode.encoder import ExposeEncoder
from gatefx.passes.decode.prefill import ExposeCache
from gatefx.passes.decode.ranks import AnswerRanks
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.capture_decoder import token_positions
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.runtime.cache_names import mask_name, past_of, positions_name, present_of


def mixed_layers() -> nn.Module:
    """A Qwen2 whose second layer slides over 6 tokens, and whose first does not."""
    import transformers

    plain = tiny_decoder("qwen2").config.to_dict()
    plain |= {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "layer_types": None}
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**plain)).eval()


def decoder(family: str) -> nn.Module:
    return mixed_layers() if family == "mixed" else tiny_decoder(family)


@dataclass(frozen=True)
class Pair:
    """Prefill and decode of one model."""

    prefill: fx.GraphModule
    decode: fx.GraphModule

    @torch.no_grad()
    def start(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The prefill's answers."""
        positions = token_positions(mask)
        given = {present_of(positions_name(0)): positions, present_of(mask_name(0)): mask}
        return {**given, **self.prefill(ids, mask, positions)}

    @torch.no_grad()
    def go_on(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: dict[str, Tensor]) -> dict[str, Tensor]:
        """The decode's answers on new tokens behind a cache."""
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        names = signature_of(self.decode).input_names
        tensors = [given[name] if name in given else cache[present_of(name)] for name in names]
        answers: dict[str, Tensor] = self.decode(*tensors)
        return answers

    def greedy(self, ids: Tensor, mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, steps), and the logits that each was read from, (B, steps, V)."""
        place = mask.sum(1, keepdim=True) - 1
        answers, tokens, logits = self.start(ids, mask), [], []
        for step in range(steps):
            logits.append(answers["logits"][:, -1])
            tokens.append(logits[-1].argmax(-1, keepdim=True))
            ones = torch.ones_like(tokens[-1])
            answers = self.go_on(tokens[-1], ones, place + 1 + step, answers)
        return torch.cat(tokens, 1), torch.stack(logits, 1)


def pair_of(model: nn.Module) -> Pair:
    graph = capture(model, tiny_inputs("llama", batch=3, tokens=9)).graph_module.eval()
    frozen = Chain(graph, True).then(FreezeRegularization())
    prefill = frozen.then(ExposeCache()).graph
    return Pair(prefill, frozen.then(ReadCache(prefill.meta["cache"])).graph)


@pytest.fixture(scope="session")
def pairs() -> Callable[[str], tuple[nn.Module, Pair]]:
    """family → (model, its two graphs), each made once."""
    made: dict[str, tuple[nn.Module, Pair]] = {}

    def make(family: str) -> tuple[nn.Module, Pair]:
        if family not in made:
            model = decoder(family)
            made[family] = (model, pair_of(model))
        return made[family]

    return make


@dataclass(frozen=True)
class Answering:
    """An encoder-decoder in two graphs, beside the model they came from."""

    model: Any
    graph: fx.GraphModule
    encode: fx.GraphModule
    decode: fx.GraphModule

    @torch.no_grad()
    def start(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The cache before the first token of the answers."""
        found = {past_of(name): value for name, value in self.encode(ids, mask).items()}
        blank = torch.zeros(len(ids), 4, 0, 8)
        own = {f"past_key_values.{layer}.{part}": blank for layer in range(2) for part in ("key", "value")}
        return {"past_cross_mask": mask, **own, **found}

    @torch.no_grad()
    def go_on(self, tokens: Tensor, cache: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T, V) of further tokens, and the cache then."""
        given = {"decoder_input_ids": tokens, **cache}
        answers = self.decode(*(given[name] for name in signature_of(self.decode).input_names))
        logits = answers.pop("logits")
        return logits, {**cache, **{past_of(name): value for name, value in answers.items()}}


@pytest.fixture(scope="session")
def answering() -> Callable[[str], Answering]:
    """family → its two graphs, made once."""

    @cache
    def make(family: str) -> Answering:
        model = tiny(family)
        frozen = Chain(capture(model, tiny_inputs(family, 3, 9)).graph_module.eval(), True).then(FreezeRegularization())
        encode = frozen.then(AnswerRanks(), ExposeEncoder()).graph
        return Answering(model, frozen.graph, encode, frozen.then(ReadAnswer()).graph)

    return make
