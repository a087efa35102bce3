"""generate: prompts → tokens, by a deployed decoder in torch or a session on an exported one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .config import Budget
from .errors import InputError
from .passes.decode.engine import engine_of
from .passes.deployed import DeployedModel
from .runtime.generation.cache import Cache
from .runtime.generation.engine import Engine
from .runtime.generation.loop import Generation, start_generation
from .runtime.generation.prompts import Rows
from .runtime.generation.sampling import Sampling
from .runtime.generation.update_records import UpdateRecords
from .runtime.sessions.decoder import OnnxDecoder
from .runtime.sessions.onnxruntime import OnnxSession


def generate(  # noqa: PLR0913  # one public door: each is a documented option
    model: DeployedModel | OnnxSession,
    input_ids: Rows,
    attention_mask: Rows | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[int] | int | None = None,
    budget: Budget | Mapping[str, Budget] | None = None,
    cache: Cache | None = None,
    chunk: int | None = None,
    max_cache_len: int | None = None,
    evict_every: int | None = None,
    records: UpdateRecords | None = None,
) -> Generation:
    """Read the prompts, and generate token by token.

        for tokens in gatefx.generate(fast, ids, mask): …            # streams, (B,) a step
        tokens = gatefx.generate(fast, ids, mask).tokens             # (B, N)

    Args:
        model: a decoder that `optimize` returned, or that `load` opened.
        input_ids: (B, T), or a list of prompts of different lengths; attention_mask: (B, T), padding on either side.
        max_new_tokens: at most so many a row.
        temperature: 0 takes the likeliest token, more draws one; top_k, top_p: among the likeliest; seed: of the draws.
        stop: tokens after which a row is over; None takes the model's own, () none.
        budget: for these prompts, instead of `model.budget`: masklora's share of the prompt, ccm's ranks, ….
        cache: of an earlier generation at the same budget, to go on from with `input_ids` as further tokens.
        chunk: read the prompt so many tokens a call, which bounds the memory of long ones; None reads it at once.
            masklora then drops tokens of every part, by a running histogram of the scores so far (predicted ones; of
            exported models, those of generate="parts"). Not where gates choose by the whole prompt: ccm below its full
            budget, encoder-decoders.
        max_cache_len: keep rows for so many tokens, prompt and padding included, in buffers whose size stays from step
            to step (a static cache); layers that keep a part of the prompt have as many fewer. None lets caches grow;
            a decoder exported with generate="static" then has rows for `max_new_tokens`. To go on from the cache
            afterwards, say more.
        evict_every: let masklora drop generated tokens too, so many at a time, as if they were a part of the prompt;
            None keeps them all.
        records: an `UpdateRecords` that is told which tokens took which update (tspeft, gatera), apart for prefill and
            decode; of models in torch.

    Raises:
        InputError: an empty prompt, one longer than the model's positions, a generation that would be, or that would
            go past its static cache, a cache of another model or budget, records of what decides nothing per token;
            GatefxError: an option out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    return start_generation(
        _engine(model, records),
        input_ids,
        attention_mask,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        budget=budget,
        cache=cache,
        chunk=chunk,
        max_cache_len=max_cache_len,
        evict_every=evict_every,
    )


def _engine(model: Any, records: UpdateRecords | None) -> Engine:
    if isinstance(model, OnnxDecoder):
        if records is not None:
            raise InputError(
                "Gates are recorded in torch.",
                given="records= with an exported model",
                expected="the deployed model that was exported, which decides the same",
                remedy="generate with what gatefx.optimize returned",
            )
        return model
    if isinstance(model, DeployedModel):
        return engine_of(model, records=records)
    raise InputError(
        "Only a deployed model generates.",
        given=type(model).__name__,
        expected="what gatefx.optimize returned, or gatefx.load of a folder exported with generate=True",
        remedy="call gatefx.optimize(model, data=calibration) first",
    )
