"""A deployed decoder's two programs, beside the one over whole texts: prefill and decode, sharing every parameter.

    hardened ─▶ ExposeCache ──────────────────────────▶ reference       masked: dropped rows stay, unseen
                     └─▶ compact(every method) ───────▶ prefill         dropped rows leave the cache
    hardened ─▶ OpenTokenChoices ─▶ compact(…) ─▶ ReadCache ─▶ ShareHeads ─▶ decode
                                                                        every token that is generated stays

Both prefills feed the one decode. Weights that compaction merged are held once: equal ones are shared. Ranks that
routers chose are answered by the prefills and held by the decode (`ranks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from ...errors import PassError, SiteError
from ...runtime.cache_names import CacheLayout
from ..chain import Chain
from ..decision import Decision
from ..find.adapters import Miss
from ..find.cache_rows import find_cache_rows
from ..graph.edit import share_parameters
from ..harden.open_choices import OpenTokenChoices
from ..methods.method import DeployOptions, Method
from .append import ReadCache
from .prefill import ExposeCache
from .ranks import AnswerRanks, HoldRanks
from .shared_heads import ShareHeads


@dataclass(frozen=True)
class DecoderPrograms:
    """The graphs that generate.

    Attributes:
        prefill, decode: as `ExposeCache` and `ReadCache` say; reference: the masked prefill that `prefill` must equal.
        layout: which layers keep the same rows.
    """

    prefill: fx.GraphModule
    decode: fx.GraphModule
    reference: fx.GraphModule
    layout: CacheLayout


def decoder_programs(
    hardened: Chain,
    methods: Mapping[str, Method[Any]],
    decisions: Mapping[str, Decision],
    options: DeployOptions,
    *,
    beside: fx.GraphModule,
) -> tuple[DecoderPrograms | None, tuple[str, ...]]:
    """The programs of a hardened graph; or None, with a note why where the graph is a decoder's.

    Args:
        beside: the compacted graph over whole texts, whose tensors the programs share.
    """
    if isinstance(find_cache_rows(hardened.graph), Miss):
        return None, ()
    try:
        return _made(hardened, methods, decisions, options, beside), ()
    except (PassError, SiteError) as error:  # answering whole texts needs none of this
        return None, (f"the model cannot generate here: {error.problem}",)


def _made(
    hardened: Chain,
    methods: Mapping[str, Method[Any]],
    decisions: Mapping[str, Decision],
    options: DeployOptions,
    beside: fx.GraphModule,
) -> DecoderPrograms:
    masked = hardened.then(ExposeCache())
    layout: CacheLayout = masked.graph.meta["cache"]
    prefill, opened = masked, hardened.then(OpenTokenChoices())
    for name, method in methods.items():
        prefill = method.compact(prefill, decisions[name], options)
        opened = method.compact(opened, decisions[name], options)
    decode = opened.then(ReadCache(layout), ShareHeads(), HoldRanks())
    prefills = [chain.then(AnswerRanks()).graph.eval() for chain in (prefill, masked)]
    for graph in (prefills[0], decode.graph):
        share_parameters(beside, graph)
    return DecoderPrograms(prefills[0], decode.graph.eval(), prefills[1], layout)
