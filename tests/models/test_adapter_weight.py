"""AdapterWeight: one number whose gradient is known until the choice is final."""

from __future__ import annotations

import copy

import torch

from gatefx.models.adapter_weight import AdapterWeight


def test_gradients_add_up_until_they_are_taken() -> None:
    weight = AdapterWeight()
    (3.0 * weight() * weight()).backward()
    (2.0 * weight()).backward()

    assert float(weight.take_gradient()) == 8.0
    assert float(weight.take_gradient()) == 0.0


def test_a_weight_of_zero_still_has_a_gradient() -> None:
    weight = AdapterWeight()
    weight.omega.zero_()
    (5.0 * weight()).backward()

    assert float(weight.take_gradient()) == 5.0


def test_no_optimiser_gets_to_move_it() -> None:
    assert list(AdapterWeight().parameters()) == []
    assert set(AdapterWeight().state_dict()) == {"omega", "updates", "frozen"}


def test_it_is_a_constant_in_serving_and_moves_no_more_once_it_is_frozen() -> None:
    weight = AdapterWeight().eval()
    assert not weight().requires_grad
    weight.train()
    assert weight().requires_grad
    with torch.no_grad():
        assert not weight().requires_grad
    torch.autograd.backward(2.0 * weight())
    weight.freeze(keep=False)
    assert weight.sink.arrived is None
    assert float(weight().detach()) == 0.0
    weight.freeze(keep=True)
    assert float(weight().detach()) == 1.0


def test_a_copy_leaves_the_last_gradient_behind() -> None:
    weight = AdapterWeight()
    (2.0 * weight()).backward()

    assert copy.deepcopy(weight).sink.arrived is None
    assert float(weight.take_gradient()) == 2.0
