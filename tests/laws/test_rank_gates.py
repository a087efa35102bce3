"""Laws of rank gates over random shapes, ragged padding, site ranks, levels and index sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from gatefx.models.configs.ccm import CCM
from gatefx.models.gate_functions import select_ranks
from gatefx.models.gates import HardRankRouter, RankRouter
from gatefx.passes.compact.ranks import CompactRanks
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.rank_router import InsertRankRouter
from gatefx.passes.graph.capture import capture
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.rank_router import HardenRankRouters
from gatefx.passes.pipeline import Pipeline

LAW = settings(max_examples=25, deadline=None, derandomize=True)
#: (rank of the first site, rank of the second).
RANKS = ((1, 1), (4, 3), (16, 5), (2, 16))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 20), nn.Linear(20, 18)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def batch_of(batch: int, tokens: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x: (B, T, 24) and a ragged mask whose rows hold at least one real token."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (batch,), generator=random)
    x = torch.randn(batch, tokens, 24, generator=random, dtype=torch.float64).to(dtype)
    return x, (torch.arange(tokens) < lengths[:, None]).long()


@cache
def graphs(ranks: tuple[int, int], dtype: torch.dtype) -> dict[str, fx.GraphModule]:
    """The same weights as base, plain adapter, gated, masked and compacted graph."""
    torch.manual_seed(sum(ranks))
    example = dict(zip(("x", "attention_mask"), batch_of(3, 5, 0, dtype), strict=True))
    base = capture(Tower().to(dtype), example).graph_module.eval()
    overrides = (("first", ranks[0], 2.0 * ranks[0]), ("second", ranks[1], 1.5 * ranks[1]))
    plain = AttachLora(4, 8.0, 0.0, "all-linear", overrides)(base, verify=True).graph_module
    for name, parameter in plain.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    gated = InsertRankRouter(CCM(d_router=8), 1.0)(plain, verify=True).graph_module.eval()
    for router in (m for m in gated.modules() if isinstance(m, RankRouter)):
        nn.init.normal_(router.heads.bias)
    harden = Pipeline((FreezeRegularization(), HardenRankRouters(1.0, "fixed", (1, 2, 4, 8, 16))))
    masked = harden(gated, verify=True).graph_module
    after = Pipeline((CompactRanks(("first", "second")),), assumes=("HardenRankRouters",))
    compacted = after(masked, verify=True).graph_module
    return {"base": base, "plain": plain, "gated": gated, "masked": masked, "compacted": compacted}


@contextmanager
def answering(graph: fx.GraphModule, kind: type, answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the routers of a graph answer what a test wants."""
    routers = [module for module in graph.modules() if isinstance(module, kind)]
    assert routers
    handles = [m.register_forward_hook(lambda _m, _i, out: answer(out)) for m in routers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


shapes = {
    "ranks": st.sampled_from(RANKS),
    "batch": st.integers(1, 8),
    "tokens": st.integers(1, 12),
    "seed": st.integers(0, 10_000),
}


@LAW
@given(**shapes)
def test_open_gates_are_the_plain_adapter_bit_for_bit(ranks: Any, batch: int, tokens: int, seed: int) -> None:
    made, given_ = graphs(ranks, torch.float32), batch_of(batch, tokens, seed, torch.float32)

    with answering(made["gated"], RankRouter, torch.ones_like):
        assert torch.equal(made["gated"](*given_)["logits"], made["plain"](*given_)["logits"])


@LAW
@given(**shapes)
def test_shut_gates_are_the_base_bit_for_bit(ranks: Any, batch: int, tokens: int, seed: int) -> None:
    made, given_ = graphs(ranks, torch.float32), batch_of(batch, tokens, seed, torch.float32)

    with answering(made["gated"], RankRouter, torch.zeros_like):
        assert torch.equal(made["gated"](*given_)["logits"], made["base"](*given_)["logits"])
    with answering(made["compacted"], HardRankRouter, lambda out: torch.full_like(out, -1)):
        assert torch.equal(made["compacted"](*given_)["logits"], made["base"](*given_)["logits"])


def random_indices(out: Tensor, ranks: tuple[int, int], seed: int, kind: str) -> Tensor:
    """Any distinct directions of each site first, then −1: ragged, none at all, all, or the same for everyone."""
    random = torch.Generator().manual_seed(seed)
    indices = torch.full_like(out, -1)
    for site, rank in enumerate(ranks):
        shared = torch.randperm(rank, generator=random)
        for example in range(out.shape[0]):
            order = shared if kind == "same" else torch.randperm(rank, generator=random)
            most = {"empty": 0, "full": rank}.get(kind, int(torch.randint(0, rank + 1, (), generator=random)))
            count = (seed % (rank + 1)) if kind == "same" else most
            indices[example, site, :count] = order[:count]
    return indices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@LAW
@given(kind=st.sampled_from(["ragged", "empty", "full", "same"]), **shapes)
def test_compacted_is_masked(dtype: torch.dtype, kind: str, ranks: Any, batch: int, tokens: int, seed: int) -> None:
    made, given_ = graphs(ranks, dtype), batch_of(batch, tokens, seed, dtype)

    def chosen(out: Tensor) -> Tensor:
        return random_indices(out, ranks, seed, kind)

    # Both graphs share one router, so one hook answers for both.
    with answering(made["masked"], HardRankRouter, chosen):
        wanted, found = made["masked"](*given_)["logits"], made["compacted"](*given_)["logits"]

    size = max(1.0, float(wanted.detach().abs().max()))
    bound = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    assert float((found - wanted).detach().abs().max()) <= bound * size


@LAW
@given(**shapes)
def test_the_order_of_examples_does_not_matter(ranks: Any, batch: int, tokens: int, seed: int) -> None:
    made, (x, mask) = graphs(ranks, torch.float64), batch_of(batch, tokens, seed, torch.float64)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))

    for name in ("masked", "compacted"):
        straight, shuffled = made[name](x, mask)["logits"][order], made[name](x[order], mask[order])["logits"]
        torch.testing.assert_close(shuffled, straight, rtol=0, atol=1e-10)


POOLS = [("mean", None), ("max", None), ("attention", None), ("cls", None), ("mean", 3), ("max", 3), ("attention", 2)]


@pytest.mark.parametrize(("pool", "prefix"), POOLS)
@LAW
@given(tokens=st.integers(1, 10), more=st.integers(1, 9), left=st.booleans(), seed=st.integers(0, 10_000))
def test_padding_never_changes_a_gate(
    pool: Any, prefix: int | None, tokens: int, more: int, left: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    config = CCM(pool=pool, prefix=prefix, d_router=8)
    router = RankRouter(config, width=24, ranks=(6, 4), head_of_site=(0, 1), budget=2.0).double().eval()
    if pool == "attention":
        nn.init.normal_(router.pool.query)
    hard = HardRankRouter(router, rule="coverage", buckets=(2, 4, 6))
    x, mask = batch_of(3, tokens, seed, torch.float64)
    junk, none = torch.randn(3, more, 24, dtype=torch.float64) * 100, torch.zeros(3, more, dtype=torch.int64)
    parts, masks = ((junk, x), (none, mask)) if left else ((x, junk), (mask, none))

    level = torch.tensor(-1.0)
    assert torch.equal(hard(torch.cat(parts, 1), torch.cat(masks, 1), level), hard(x, mask, level))


scores = st.integers(0, 10_000).map(lambda seed: torch.Generator().manual_seed(seed))


def probabilities(random: torch.Generator, ranks: tuple[int, ...], batch: int, sharpness: float) -> Tensor:
    """(B, S, r) probabilities that sum to one, zero beyond each site's rank."""
    logits = torch.randn(batch, len(ranks), max(ranks), generator=random) * sharpness
    inside = torch.arange(max(ranks)) < torch.tensor(ranks).unsqueeze(-1)
    return torch.softmax(logits.masked_fill(~inside, float("-inf")), -1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    random=scores,
    ranks=st.lists(st.integers(1, 16), min_size=1, max_size=4).map(tuple),
    batch=st.integers(1, 8),
    sharpness=st.sampled_from([0.0, 0.1, 1.0, 10.0, 100.0]),
    rule=st.sampled_from(["coverage", "fixed", "threshold"]),
    k_min=st.integers(1, 4),
    buckets=st.sampled_from([None, (2, 4, 6, 8, 10, 12, 16), (3,), (1, 16)]),
    level=st.floats(0.0, 1.0),
)
def test_selected_ranks_are_what_they_say(
    random: Any, ranks: Any, batch: int, sharpness: float, rule: str, k_min: int, buckets: Any, level: float
) -> None:
    p, site_ranks = probabilities(random, ranks, batch, sharpness), torch.tensor(ranks)
    low, high = {"coverage": (-9.0, 0.0), "fixed": (0.0, 16.0), "threshold": (1.0, 0.0)}[rule]
    if rule == "coverage":
        low, high = high, low  # log(1 − c) falls as c grows
    stops = None if buckets is None else torch.tensor(buckets)

    def select(share: float) -> tuple[Tensor, Tensor]:
        at = torch.tensor(low + (high - low) * share)
        return select_ranks(p, at, site_ranks, rule=rule, k_min=k_min, buckets=stops)

    indices, mask = select(level)
    count = mask.sum(-1)
    for example in range(batch):
        for site, rank in enumerate(ranks):
            row, k = indices[example, site].tolist(), int(count[example, site])
            assert all(0 <= index < rank for index in row[:k])
            assert row[k:] == [-1] * (len(row) - k)
            assert len(set(row[:k])) == k
            assert {index for index, on in enumerate(mask[example, site].tolist()) if on} == set(row[:k])
            assert min(k_min, rank) <= k <= rank
            assert buckets is None or k in buckets or k in (rank, min(k_min, rank)) or k > max(buckets)
            chosen = p[example, site, row[:k]]
            rest = p[example, site][~mask[example, site]]
            assert bool((chosen.diff() <= 0).all())
            assert not len(rest) or not k or float(rest.max()) <= float(chosen.min())
    more = select(min(level + 0.2, 1.0))[1]
    assert bool((more.sum(-1) >= count).all()), "a larger level never gives fewer ranks"
    assert bool((more | ~mask).all()), "and it keeps those that were active"
