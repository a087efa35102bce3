"""How many tokens a cut keeps and which: exact counts, tokens that must stay, tables looked up in a graph."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.token_gate import SharePoint, TokenGate, must_stay
from gatefx.models.token_selection import MonotoneTable, kept_counts, priorities, tokens_of_share, top_mask


@given(st.integers(1, 100), st.integers(1, 512))
def test_a_share_of_n_tokens_is_rounded_up_exactly(percent: int, n: int) -> None:
    wanted = math.ceil(Fraction(percent, 100) * n)
    assert int(tokens_of_share(torch.tensor(percent / 100), torch.tensor(float(n)))) == wanted


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 5)), min_size=2, max_size=8, unique_by=lambda p: p[0]))
def test_a_table_is_numpy_s_interpolation(points: list[tuple[float, float]]) -> None:
    points = sorted(points)
    x, y = zip(*points, strict=True)
    if min(np.diff(x)) < 1e-4:
        return
    table = MonotoneTable(points)
    for at in (0.0, 0.13, 0.5, 0.77, 1.0):
        np.testing.assert_allclose(float(table(torch.tensor(at))), np.interp(at, x, y), atol=1e-3)


def test_top_mask_takes_earlier_tokens_of_equal_priority() -> None:
    priority = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [3.0, 1.0, 1.0, 5.0, 1.0]])
    mask = top_mask(priority, torch.tensor([2, 3]))
    assert mask.tolist() == [[False, True, True, False, False], [True, True, False, True, False]]


def test_tokens_that_must_stay_come_first_and_those_gone_last() -> None:
    alive = torch.tensor([[True, True, True, True, False, False]])
    protected = torch.tensor([[False, False, False, True, True, False]])
    must = must_stay((0, -1), alive, protected)
    assert must.tolist() == [[True, False, False, True, False, True]]

    scores = torch.tensor([[0.1, 0.9, 0.5, 0.0, 9.0, 9.0]])
    counts = kept_counts(torch.tensor([2.0]), total=torch.tensor([4.0]), alive=alive, must=must, floor=0.1)
    assert counts.tolist() == [3]
    assert top_mask(priorities(scores, alive, must), counts).tolist() == must.tolist()


def test_never_fewer_than_the_floor_nor_more_than_are_left() -> None:
    alive = torch.ones(1, 10, dtype=torch.bool)
    none = torch.zeros_like(alive)
    ten = torch.tensor([10.0])
    assert kept_counts(torch.tensor([0.0]), total=ten, alive=alive, must=none, floor=0.25).tolist() == [3]
    assert kept_counts(torch.tensor([8.0]), total=ten, alive=alive & False, must=none, floor=0.0).tolist() == [1]
    few = torch.arange(10).expand(1, 10) < 4
    assert kept_counts(torch.tensor([8.0]), total=ten, alive=few, must=none, floor=0.0).tolist() == [4]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["topk", "threshold"]))
def test_a_larger_budget_never_keeps_fewer(seed: int, select: str) -> None:
    torch.manual_seed(seed)
    gate = TokenGate(MaskLoRA(), layer=1, width=8, kept=(0,), share=SharePoint(0.5, 0.6, 0.5), layers=1)
    torch.nn.init.normal_(gate.predictor.score.weight)
    hard = HardTokenGate(gate, config=MaskLoRA())
    if select == "threshold":
        hard.select_by([(0.05, 3.0), (0.5, 1.0), (1.0, 0.0)])
    mask = (torch.arange(12) < torch.randint(1, 13, (4, 1))).long()
    state, n = torch.randn(4, 12, 8), mask.sum(1)
    counts = [hard(state, mask, n, torch.tensor(share))[1] for share in (0.05, 0.3, 0.5, 0.8, 1.0)]

    for smaller, larger in itertools.pairwise(counts):
        assert (smaller <= larger).all()
    assert torch.equal(counts[-1], n.clamp_min(1))
