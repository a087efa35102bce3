from __future__ import annotations

import torch

from gatefx.runtime.generation.update_records import UpdateCount, UpdateRecords


def test_calls_add_up_in_their_phase_and_padding_counts_nowhere() -> None:
    records = UpdateRecords()
    real = torch.tensor([[1, 1, 0], [1, 0, 0]])
    records.add("prefill", "q", torch.tensor([[True, False, True], [True, True, True]]), real)
    records.add("prefill", "q", torch.tensor([[0.5, 0.25, 1.0], [0.0, 1.0, 1.0]]), real)
    records.add("decode", "v", torch.ones(2, 1, dtype=torch.bool), torch.tensor([[1], [0]]))
    assert dict(records.prefill) == {"q": UpdateCount(2.75, 6)}
    assert dict(records.decode) == {"v": UpdateCount(1.0, 1)}


def test_a_share_is_of_the_tokens_that_were_read() -> None:
    assert UpdateCount(3.0, 4).share == 0.75
    assert UpdateCount(0.0, 0).share == 0.0
