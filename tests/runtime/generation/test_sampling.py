from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gatefx.errors import InputError
from gatefx.runtime.generation.sampling import Sampling, choose, restricted

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 5.0, -1.0, 0.0]])


def drawn(sampling: Sampling, times: int = 4000) -> np.ndarray:
    """How often each token comes, row by row."""
    generator = sampling.generator()
    tokens = torch.stack([choose(LOGITS, sampling, generator) for _ in range(times)], 1)
    return np.stack([np.bincount(row, minlength=4) / times for row in tokens.numpy()])


def test_temperature_zero_takes_the_likeliest_and_of_two_the_first() -> None:
    assert choose(LOGITS, Sampling(), None).tolist() == [1, 0]


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    found = drawn(Sampling(temperature=2.0, seed=0))
    np.testing.assert_allclose(found, torch.softmax(LOGITS / 2.0, -1).numpy(), atol=0.03)


def test_top_k_leaves_k_and_of_equal_ones_the_first() -> None:
    left = restricted(LOGITS, 1, None)
    assert (left > -torch.inf).tolist() == [[False, True, False, False], [True, False, False, False]]


def test_top_p_leaves_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {p: int((restricted(logits, None, p) > -torch.inf).sum()) for p in (0.4, 0.5, 0.51, 0.8, 0.9, 1.0)}
    assert kept == {0.4: 1, 0.5: 1, 0.51: 2, 0.8: 2, 0.9: 3, 1.0: 4}


def test_top_p_counts_what_top_k_left() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert int((restricted(logits, 2, 0.6) > -torch.inf).sum()) == 1, "0.5 of 0.8 is more than 0.6"
    assert int((restricted(logits, None, 0.6) > -torch.inf).sum()) == 2


def test_one_seed_is_one_text_and_torchs_own_state_stays() -> None:
    sampling = Sampling(temperature=1.0, seed=7)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (choose(LOGITS, sampling, sampling.generator()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_k": 1.5},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.5},
        {"top_k": 3},
        {"seed": 3},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Sampling(**options)
