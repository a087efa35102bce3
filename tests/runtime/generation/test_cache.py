from __future__ import annotations

import pytest
import torch

from gatefx.errors import InputError
from gatefx.runtime.generation.cache import Cache, key_names


def test_rows_of_an_answer_go_on_together() -> None:
    cache = Cache({}, "model", 1.0, (3, 1, 3), (4, 4, 9, 9), 0)
    cache.check_in_line(torch.tensor([[1, 1], [0, 0], [1, 1]]))  # the second ended, and reads nothing
    with pytest.raises(InputError, match=r"row 1 with 2 of 4 tokens"):
        cache.check_in_line(torch.tensor([[1], [1], [1]]))
    with pytest.raises(InputError, match=r"row 2 .* 1 of 2 more"):
        cache.check_in_line(torch.tensor([[1, 1], [0, 0], [1, 0]]))
    Cache({}, "model", 1.0, (-1, -1), (), 0).check_in_line(torch.ones(2, 1))


def test_keys_stand_layer_by_layer_and_the_encoders_last() -> None:
    names = [f"past_cross.{i}.{part}" for i in (10, 2) for part in ("key", "value")]
    names += ["past_cross_mask", "past_mask.0", "ranks.hard", *(f"past_key_values.{i}.key" for i in (1, 0, 10))]
    own = [f"past_key_values.{i}.key" for i in (0, 1, 10)]
    assert key_names(names) == [*own, "past_cross.2.key", "past_cross.10.key"]
