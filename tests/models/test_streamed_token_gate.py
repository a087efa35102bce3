"""Gates that choose part by part, against a histogram kept in plain Python, example by example."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.score_histogram import BINS, HIGHEST, LOWEST, ScoreHistogram
from gatefx.models.streamed_token_gate import StreamedTokenGate
from gatefx.models.token_gate import SharePoint, TokenGate
from gatefx.models.token_selection import tokens_of_share, top_mask

_WIDTH = 8


@pytest.fixture
def hard() -> HardTokenGate:
    config = MaskLoRA(floor=0.0)
    gate = TokenGate(config, layer=1, width=_WIDTH, kept=(), share=SharePoint(0.5, 0.5, 0.5), layers=1)
    torch.nn.init.normal_(gate.predictor.score.weight, std=0.5)
    return HardTokenGate(gate, config=config).double().eval()


def chosen(priority: Tensor, counts: Tensor, alive: Tensor) -> Tensor:
    """(B, T) bool: real tokens that stay."""
    return top_mask(priority, counts) & alive


def parts_of(batch: int, sizes: list[int], seed: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Parts of ragged prompts: (state, alive, n, protected), where an earlier cut dropped some tokens."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        real = torch.rand(batch, size, generator=random) < 0.9
        alive = real & (torch.rand(batch, size, generator=random) < 0.8)
        protected = torch.rand(batch, size, generator=random) < 0.05
        state = torch.randn(batch, size, _WIDTH, generator=random, dtype=torch.float64)
        found.append((state, alive, real.sum(-1), protected))
    return found


@torch.no_grad()
@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.3, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_each_part_keeps_what_a_histogram_of_its_example_says(hard: HardTokenGate, share: float, seed: int) -> None:
    gate, budget, cold = StreamedTokenGate(hard, cold=60), torch.tensor(share), 60
    seen = torch.zeros(3, BINS + 1)
    histograms = [ScoreHistogram() for _ in range(3)]
    for state, alive, n, protected in parts_of(3, [25, 40, 1, 70, 33], seed):
        priority, counts, seen = gate(state, alive.double(), n, budget, protected, seen)
        found = chosen(priority, counts, alive)
        scores = hard.scores(state, None)
        for row, histogram in enumerate(histograms):
            left, must = alive[row], protected[row] & alive[row]
            histogram.observe(scores[row][left], gone=int(n[row] - left.sum()))
            if histogram.total < cold:
                most = int(tokens_of_share(budget, n[row].float()))
                order = (scores[row] + 1e6 * must).masked_fill(~left, -1.0).argsort(descending=True, stable=True)
                wanted = torch.zeros_like(left)
                wanted[order[: max(most, int(must.sum()), 1)]] = True
            else:
                wanted = (scores[row] >= histogram.level(share)) | must
            wanted &= left
            if wanted.any():
                assert torch.equal(found[row], wanted)
            assert int(seen[row, -1]) == int(histogram.total)
            torch.testing.assert_close(seen[row, :-1].double(), histogram.counts)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_one_part_is_the_whole_prompts_choice_outside_of_one_bin(hard: HardTokenGate, share: float) -> None:
    ((state, alive, n, protected),) = parts_of(4, [500], 5)
    blank, budget = torch.zeros(4, BINS + 1), torch.tensor(share)
    whole = chosen(*hard(state, alive.double(), n, budget, protected), alive)
    cold = chosen(*StreamedTokenGate(hard, cold=501)(state, alive.double(), n, budget, protected, blank)[:2], alive)
    assert torch.equal(cold, whole)
    warm = chosen(*StreamedTokenGate(hard, cold=1)(state, alive.double(), n, budget, protected, blank)[:2], alive)
    scores = hard.scores(state, None)
    step = (HIGHEST / LOWEST) ** (1 / BINS)
    for row in range(4):
        level = scores[row][whole[row] & ~protected[row]].min()
        apart = warm[row] != whole[row]
        far = (scores[row] > level * step**1.5) | (scores[row] < level / step**1.5)
        # Protected tokens count in the histogram and are kept beside it, so their number may move κ by as many tokens.
        assert int((apart & far).sum()) <= int((protected & alive)[row].sum())


@torch.no_grad()
def test_a_part_without_a_token_of_an_example_changes_nothing_of_it(hard: HardTokenGate) -> None:
    state = torch.randn(2, 5, _WIDTH, dtype=torch.float64)
    mask = torch.tensor([[1.0] * 5, [0.0] * 5])
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    gate, seen = StreamedTokenGate(hard), torch.rand(2, BINS + 1)
    _, counts, after = gate(state, mask, mask.sum(-1), torch.tensor(0.5), nobody, seen)
    assert torch.equal(after[1], seen[1])
    assert int(after[0, -1] - seen[0, -1]) == 5
    assert counts.tolist() == [3, 1], "one slot at least, which the mask shuts"


def test_it_says_what_it_is(hard: HardTokenGate) -> None:
    assert "cold below 7" in repr(StreamedTokenGate(hard, cold=7))
