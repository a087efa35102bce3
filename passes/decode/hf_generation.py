"""transformers' own `generate` on a deployed decoder: beams, processors of logits, streamers, whatever it offers.

    model = fast.for_transformers()
    model.generate(**tokenizer(texts, return_tensors="pt", padding=True), max_new_tokens=50)

The prompt is read by the prefill, with the budget in force, and every step by the decode.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError, missing_package
from ...runtime.generation.cache import Cache
from ..deployed import DeployedModel
from ..find.answer_rows import has_encoder
from .engine import engine_of

try:
    from transformers import GenerationConfig, GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise missing_package("transformers", extra="hf", feature="for_transformers()") from error


class SequenceCache:
    """A cache as transformers handles it: how long it is, and which rows go on when beams are chosen anew.

    Attributes:
        is_compileable: no compiled loop is made around it.
    """

    is_compileable = False

    def __init__(self, cache: Cache, tokens: int) -> None:
        self.cache = cache
        self._tokens = tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  # transformers' signature
        """How many tokens of each row were read, padding too; layers may keep fewer."""
        return self._tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows."""
        held = self.cache
        entries = {name: value.index_select(0, beam_idx.to(value.device)) for name, value in held.entries.items()}
        last = tuple(held.last[int(row)] for row in beam_idx)
        self.cache = Cache(entries, held.owner, held.budget, last, held.rows, held.bytes)


class TransformersDecoder(nn.Module, GenerationMixin):  # type: ignore[misc]  # transformers' classes are untyped here
    """A deployed decoder behind transformers' `generate`. It shares the model's parameters and follows its budget."""

    main_input_name = "input_ids"
    _is_stateful = False

    def __init__(self, model: DeployedModel) -> None:
        super().__init__()
        if model.config is None:
            raise InputError("transformers generates by a model's config.", given="a model without one")
        if has_encoder(model.graph_module):
            raise InputError(
                "transformers' generate is offered for decoders without an encoder.",
                given=model.signature.architecture,
                expected="a causal language model",
                remedy="generate with gatefx.generate(model, input_ids, attention_mask)",
            )
        self.model = model
        self.engine = engine_of(model)
        self.config = model.config
        self.generation_config = GenerationConfig.from_model_config(model.config)
        self.generation_config.use_cache = True  # a prompt is chosen from once, not again at every step

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype

    @classmethod
    def can_generate(cls) -> bool:
        """That is what it is for."""
        return True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes the cache

    def _optimize_model_for_decode(self) -> AbstractContextManager[None]:
        return nullcontext()  # the graphs are what they are

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: SequenceCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **_others: object,  # transformers passes whatever its models may want
    ) -> dict[str, Any]:
        """The arguments of the next call: all tokens, or those that the cache has not read."""
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        return {
            "input_ids": new,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,  # noqa: ARG002  # the engine counts them itself, in the same way
        past_key_values: SequenceCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,  # noqa: ARG002  # always
    ) -> Any:
        """The next token's logits (B, 1, V) and the cache, as transformers' causal language models answer.

        Args:
            input_ids: (B, T) a prompt, or the tokens behind `past_key_values`; attention_mask: of all tokens so far.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        ids, mask = input_ids.cpu(), mask.cpu().long()
        if past_key_values is None:
            logits, cache = self.engine.prefill(ids, mask, self.model.budget)
            tokens = ids.shape[1]
        else:
            logits, cache = self.engine.decode(ids, mask, past_key_values.cache)
            tokens = past_key_values.get_seq_length() + ids.shape[1]
        held = SequenceCache(cache, tokens) if use_cache is not False else None
        return CausalLMOutputWithPast(logits=logits.unsqueeze(1).to(input_ids.device), past_key_values=held)
