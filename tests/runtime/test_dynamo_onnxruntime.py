"""torch.compile with ONNX Runtime: answers as in eager mode, one session for every length, weights that change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

import gatefx
from gatefx.errors import CaptureError, GatefxError, ProviderError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime import dynamo_onnxruntime
from gatefx.runtime.dynamo_backend import gatefx as backend

OPTIONS = {"lower": "onnxruntime"}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The sessions that were started."""
    started: list[object] = []
    start = dynamo_onnxruntime.start_in_memory

    def counted(*arguments: Any, **options: Any) -> object:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(dynamo_onnxruntime, "start_in_memory", counted)
    return started


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend=backend, fullgraph=True, dynamic=True, options={**OPTIONS, **options})


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)).eval()


@torch.no_grad()
def test_one_session_answers_for_every_size(sessions: list[object]) -> None:
    model = net()
    run = compiled(model)
    run(torch.randn(2, 5, 6))
    with dynamo_config.patch(error_on_recompile=True):
        for sizes in ((3, 4), (7, 2), (5, 9)):
            x = torch.randn(*sizes, 6)
            torch.testing.assert_close(run(x), model(x), rtol=0, atol=1e-6)
    assert len(sessions) == 1
    assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_weights_that_change_are_read_anew(sessions: list[object]) -> None:
    model, x = net(), torch.randn(4, 6)
    run = compiled(model)
    run(x)
    layer = model.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    layer.weight.mul_(2)
    torch.testing.assert_close(run(x), model(x), rtol=0, atol=1e-6)
    layer.weight = nn.Parameter(torch.randn(8, 6), requires_grad=False)
    torch.testing.assert_close(run(x), model(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(run(x), model(x), rtol=0, atol=1e-6)
    assert len(sessions) == 3


@torch.no_grad()
def test_python_numbers_that_change_are_written_anew(sessions: list[object]) -> None:
    x = torch.randn(4, 6)
    run = compiled(lambda x, eps: nn.functional.layer_norm(x, (6,), eps=eps))
    for eps in (0.5, 0.5, 2.5):
        torch.testing.assert_close(run(x, eps), nn.functional.layer_norm(x, (6,), eps=eps), rtol=0, atol=1e-6)
    assert len(sessions) == 2


def test_gradients_are_refused_and_nothing_else() -> None:
    model, x = net(), torch.randn(4, 6)
    run = compiled(model)
    with pytest.raises(GatefxError, match=r"needs gradients[\s\S]*no_grad"):
        run(x)
    with torch.no_grad():
        torch.testing.assert_close(run(x), model(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled(model.requires_grad_(False))(x), model(x), rtol=0, atol=1e-6)
    with pytest.raises(GatefxError, match="needs gradients"):
        compiled(model)(x.requires_grad_())


@torch.no_grad()
def test_what_has_no_onnx_form_is_raised_and_never_run_in_torch() -> None:
    with dynamo_config.patch(suppress_errors=True), pytest.raises(CaptureError, match=r"No ONNX form[\s\S]*qr"):
        compiled(torch.linalg.qr)(torch.randn(4, 3))


@torch.no_grad()
def test_the_provider_is_the_one_that_was_asked_for() -> None:
    with pytest.raises(ProviderError, match="NoSuchProvider"):
        compiled(net(), provider="NoSuchProvider")(torch.randn(4, 6))


@pytest.mark.slow
@torch.no_grad()
def test_a_deployed_model_follows_its_budget_without_a_new_session(sessions: list[object]) -> None:
    batches = [tiny_inputs("bert", 4, tokens, seed) for seed, tokens in enumerate((7, 10, 13))]
    config = gatefx.methods.MaskLoRA(rank=8, keep={1: 0.5}, floor=0.0)
    gated = gatefx.prepare(tiny("bert"), config, 0.5, example_inputs=batches[0]).eval()
    for parameter in gated.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.3)
    fast = gatefx.optimize(gated, data=batches, progress=False)
    run = compiled(fast)
    run(**batches[0])
    answers: list[Tensor] = []
    with dynamo_config.patch(error_on_recompile=True):
        for budget in (0.5, 0.3, 0.8):
            fast.budget = budget
            for batch in batches:
                answers.append(run(**batch)["logits"])
                torch.testing.assert_close(answers[-1], fast(**batch)["logits"], rtol=0, atol=1e-5)
    assert len(sessions) == 1
    assert not torch.allclose(answers[2], answers[5])
