"""Small plain modules for pass tests, and the one way to run a pass: with every law that holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.models.configs.ccm import CCM
from gatefx.models.configs.gatera import GateRA
from gatefx.passes.contract import Pass, PassResult
from gatefx.passes.gate.hira import AttachHira
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.gate.rank_router import InsertRankRouter
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.legality import check_legality


class Plain(nn.Module):
    """Two token-wise layers and a pooled head: linear → dropout → linear → mean over tokens → head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 10)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Linear(10, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        hidden = torch.tanh(self.second(self.dropout(hidden)))
        real = attention_mask.to(hidden.dtype).unsqueeze(-1)
        return self.classifier((hidden * real).sum(1) / real.sum(1))


def plain_inputs(batch: int = 3, tokens: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """x: (B, T, 12) and a ragged attention_mask: (B, T)."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, 12, generator=random, dtype=torch.float64).to(dtype)
    lengths = torch.randint(1, tokens + 1, (batch,), generator=random)
    lengths[0] = tokens
    return {"x": x, "attention_mask": (torch.arange(tokens) < lengths[:, None]).long()}


def randomise(graph: fx.GraphModule, seed: int = 0) -> fx.GraphModule:
    """Give every adapter's B, and every router's last bias, values that show."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in graph.named_parameters():
        if ".lora_B." in name or name.endswith("heads.bias"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.3)
    return graph


def _snapshot(graph: fx.GraphModule) -> dict[str, Any]:
    return {
        "text": canonical_text(graph),
        "code": graph.code,
        "weights": {name: value.clone() for name, value in graph.state_dict().items()},
        "training": {name: module.training for name, module in graph.named_modules()},
        "requires_grad": {name: value.requires_grad for name, value in graph.named_parameters()},
    }


def _same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights, now = before.pop("weights"), after.pop("weights")
    assert weights.keys() == now.keys()
    assert all(torch.equal(value, now[name]) for name, value in weights.items())
    assert before == after


def run_checked(item: Pass, graph: fx.GraphModule) -> PassResult:
    """Run a pass with verify=True; its input stays, its result is legal, and running it again changes nothing."""
    before = _snapshot(graph)
    result = item(graph, verify=True)
    _same(before, _snapshot(graph))
    check_legality(result.graph_module)
    fired = [name for report in result.reports for name in report.fired]
    assert (result.graph_module is graph) == (not fired)
    again = item(result.graph_module, verify=True)
    assert again.graph_module is result.graph_module, "run twice is not run once"
    assert not [name for report in again.reports for name in report.fired]
    assert all(report.op_changes == {} for report in again.reports)
    return result


@pytest.fixture
def checked() -> Callable[[Pass, fx.GraphModule], PassResult]:
    return run_checked


@pytest.fixture
def inputs() -> Callable[..., dict[str, Any]]:
    return plain_inputs


@pytest.fixture
def plain() -> nn.Module:
    return Plain().eval()


@pytest.fixture
def capture_plain() -> Callable[..., fx.GraphModule]:
    """module (default: `Plain`), in any dtype → its graph in eval mode."""

    def make(module: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
        chosen = (Plain() if module is None else module).to(dtype)
        return capture(chosen, plain_inputs(dtype=dtype)).graph_module.eval()

    return make


@pytest.fixture
def adapted(capture_plain: Callable[..., fx.GraphModule]) -> Callable[..., fx.GraphModule]:
    """A graph whose layers carry adapters with B ≠ 0."""

    def make(
        rank: int = 4,
        overrides: tuple[tuple[str, int, float], ...] = (("second", 3, 6.0),),
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> fx.GraphModule:
        attach = AttachLora(rank, 8.0, dropout, "all-linear", overrides)
        return randomise(attach(capture_plain(dtype=dtype)).graph_module)

    return make


@pytest.fixture
def routed(adapted: Callable[..., fx.GraphModule]) -> Callable[..., fx.GraphModule]:
    """A graph whose adapters are gated by rank routers that decide differently per example."""

    def make(config: CCM | None = None, budget: float = 2.0, **given: Any) -> fx.GraphModule:
        graph = InsertRankRouter(config or CCM(d_router=8), budget)(adapted(**given)).graph_module
        return randomise(graph).eval()

    return make


@pytest.fixture
def modulated(adapted: Callable[..., fx.GraphModule], capture_plain: Callable[..., fx.GraphModule]) -> Any:
    """A graph whose adapters, of either kind, have a token gate each, with weights that show."""

    def make(update: str = "hira", dropout: float = 0.0, gated: bool = True, **given: Any) -> fx.GraphModule:
        dtype = given.pop("dtype", torch.float32)
        if update == "lora":
            graph = adapted(dropout=dropout, dtype=dtype)
        else:
            graph = AttachHira(4, dropout, "all-linear")(capture_plain(dtype=dtype)).graph_module
        if gated:
            graph = InsertModulation(GateRA(update=update, **given), budget=0.5)(graph).graph_module  # type: ignore[arg-type]
        random = torch.Generator().manual_seed(1)
        for name, parameter in graph.named_parameters():
            if ".hira_B." in name or name.startswith("modulation_"):
                parameter.data.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
        return graph.eval()

    return make
