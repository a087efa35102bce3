"""GradientSink: gradients add up, are taken once, and neither copies nor moves carry them along."""

from __future__ import annotations

import copy
import io

import torch
from torch import nn

from gatefx.models.gradient_sink import GradientSink


def test_gradients_add_up_and_are_taken_once() -> None:
    sink = GradientSink()
    assert sink.arrived is None
    for weight in (2.0, 0.5):
        torch.autograd.backward(3 + weight * sink())
    assert sink.arrived is not None
    assert float(sink.arrived) == 2.5
    taken = sink.take()
    assert taken is not None
    assert float(taken) == 2.5
    assert sink.take() is None


def test_it_is_zero_and_nothing_that_is_trained_or_saved() -> None:
    sink = GradientSink((3,))
    assert torch.equal(sink(), torch.zeros(3, dtype=torch.float64))
    assert not list(sink.parameters())
    assert not sink.state_dict()


def test_copies_and_pickles_start_anew() -> None:
    sink = GradientSink()
    torch.autograd.backward(sink() * 2)
    stored = io.BytesIO()
    torch.save(sink, stored)
    stored.seek(0)
    for other in (copy.deepcopy(sink), torch.load(stored, weights_only=False)):
        assert other.arrived is None
        torch.autograd.backward(other() * 5)
        assert float(other.arrived) == 5
    assert float(sink.take() or 0) == 2


def test_it_follows_the_model_and_keeps_its_type() -> None:
    model = nn.Sequential(nn.Linear(2, 2), GradientSink((2,))).half()
    sink = model[1]
    assert isinstance(sink, GradientSink)
    assert sink().dtype == torch.float64
    assert sink().requires_grad
    assert sink().is_leaf
    torch.autograd.backward(sink().sum())
    assert torch.equal(model.to("cpu")[1].arrived, torch.ones(2, dtype=torch.float64))
    moved = model.to("meta")[1]
    assert moved().device.type == moved.arrived.device.type == "meta"
