"""A deployed decoder's two programs, beside the one over whole texts: prefill and decode, sharing every parameter.

    hardened ─▶ ExposeCache ──────────────────────────▶ reference       masked: dropped rows stay, unseen
                     └─▶ compact(every method) ───────▶ prefill         dropped rows leave the cache
    hardened ─▶ OpenTokenChoices ─▶ compact(…) ─▶ ReadCache ─▶ ShareHeads ─▶ decode
                                                                        every token that is generated stays

An encoder-decoder has its encoder for a prefill, which runs once, and its decoder for a decode:

    hardened ─▶ AnswerRanks ─▶ ExposeEncoder ─────────▶ reference
                                     └─▶ compact(…) ──▶ prefill         dropped tokens of the source are not read
    hardened ─▶ OpenTokenChoices ─▶ compact(…) ─▶ HoldRanks ─▶ ReadAnswer ─▶ decode

Both prefills feed the one decode; `FixRows` makes another form of it, for caches of fixed size. Weights that compaction
merged are held once: equal ones are shared. Ranks that routers chose are answered by the prefills and held by the
decode (`ranks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ...errors import PassError, SiteError
from ...runtime.cache_names import CacheLayout
from ..chain import Chain
from ..decision import Decision
from ..find.adapters import Miss
from ..find.answer_rows import has_encoder
from ..find.cache_rows import find_cache_rows
from ..graph.edit import share_parameters
from ..harden.open_choices import OpenTokenChoices
from ..methods.method import DeployOptions, Method
from .answer import ReadAnswer
from .append import ReadCache
from .encoder import ExposeEncoder
from .fixed_rows import FixRows, in_place
from .part_choices import StreamChoices
from .prefill import ExposeCache
from .ranks import AnswerRanks, HoldRanks
from .read_part import ReadPart
from .shared_heads import ShareHeads


@dataclass(frozen=True)
class DecoderPrograms:
    """The graphs that generate.

    Attributes:
        prefill, decode: as `ExposeCache` and `ReadCache` say, of an encoder-decoder `ExposeEncoder` and `ReadAnswer`.
        reference: the masked prefill that `prefill` must equal.
        layout: which layers keep the same rows.
    """

    prefill: fx.GraphModule
    decode: fx.GraphModule
    reference: fx.GraphModule
    layout: CacheLayout
    _forms: dict[str, fx.GraphModule] = field(default_factory=dict, repr=False, compare=False)

    @property
    def static_decode(self) -> fx.GraphModule:
        """The decode over a cache of fixed size (`fixed_rows.py`), made when it is asked for.

        Raises:
            InputError: an encoder-decoder's, which has none.
        """
        return self._form("static", self.decode, lambda graph: FixRows()(graph).graph_module.eval())

    @property
    def buffered_decode(self) -> fx.GraphModule:
        """The same as it runs in torch, in place. Errors as `static_decode`."""
        return self._form("buffered", self.static_decode, in_place)

    @property
    def part(self) -> fx.GraphModule:
        """The prefill of a part of a prompt (`read_part.py`), whose gates choose by what they saw so far.

        Raises:
            PassError: the decoder has no such form; says why.
        """
        return self._form("part", self.prefill, _reads_parts)

    @property
    def reference_part(self) -> fx.GraphModule:
        """The masked one, that `part` must equal. Errors as `part`."""
        return self._form("reference part", self.reference, _reads_parts)

    def _form(
        self, name: str, source: fx.GraphModule, make: Callable[[fx.GraphModule], fx.GraphModule]
    ) -> fx.GraphModule:
        """What is made of a graph once, and again where that was moved or cast since: it has other buffers then."""
        made, own = self._forms.get(name), dict(source.named_buffers())
        if made is None or any(own.get(key, buffer) is not buffer for key, buffer in made.named_buffers()):
            made = self._forms[name] = make(source)
        return made


def _reads_parts(prefill: fx.GraphModule) -> fx.GraphModule:
    read = ReadPart()(prefill).graph_module
    return StreamChoices()(read).graph_module.eval()


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
    answers = has_encoder(hardened.graph)
    if not answers and isinstance(find_cache_rows(hardened.graph), Miss):
        return None, ()
    chains = _encoding if answers else _continuing
    try:
        return _finished(*chains(hardened, methods, decisions, options), beside), ()
    except (PassError, SiteError) as error:  # answering whole texts needs none of this
        return None, (f"the model cannot generate here: {error.problem}",)


def _continuing(
    hardened: Chain, methods: Mapping[str, Method[Any]], decisions: Mapping[str, Decision], options: DeployOptions
) -> tuple[Chain, Chain, Chain]:
    """(prefill, decode, masked prefill) of a decoder."""
    masked = hardened.then(ExposeCache())
    layout: CacheLayout = masked.graph.meta["cache"]
    prefill, opened = _compacted((masked, hardened.then(OpenTokenChoices())), methods, decisions, options)
    decode = opened.then(ReadCache(layout), ShareHeads(), HoldRanks())
    return prefill.then(AnswerRanks()), decode, masked.then(AnswerRanks())


def _encoding(
    hardened: Chain, methods: Mapping[str, Method[Any]], decisions: Mapping[str, Decision], options: DeployOptions
) -> tuple[Chain, Chain, Chain]:
    """(encoder, decoder, masked encoder) of an encoder-decoder. Ranks are answered before the decoder is dropped."""
    masked = hardened.then(AnswerRanks(), ExposeEncoder())
    encoder, opened = _compacted((masked, hardened.then(OpenTokenChoices())), methods, decisions, options)
    return encoder, opened.then(HoldRanks(), ReadAnswer()), masked


def _compacted(
    chains: tuple[Chain, Chain],
    methods: Mapping[str, Method[Any]],
    decisions: Mapping[str, Decision],
    options: DeployOptions,
) -> tuple[Chain, Chain]:
    """Each chain after every method's compaction."""
    first, second = chains
    for name, method in methods.items():
        first, second = (method.compact(chain, decisions[name], options) for chain in (first, second))
    return first, second


def _finished(prefill: Chain, decode: Chain, masked: Chain, beside: fx.GraphModule) -> DecoderPrograms:
    for chain in (prefill, decode):
        share_parameters(beside, chain.graph)
    layout: CacheLayout = decode.graph.meta["cache"]
    return DecoderPrograms(prefill.graph.eval(), decode.graph.eval(), masked.graph.eval(), layout)
