"""What tests share: one tolerance per dtype, and captured small models that no test may change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.models.token_gate import SharePoint, TokenGate
from gatefx.passes.gate.token_gate import InsertTokenGates
from gatefx.passes.graph.capture import Captured, capture
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.token_gate import HardenTokenGates

#: Largest absolute difference that reordered arithmetic may make on values of order one.
TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}
)

#: What third-party packages warn about among themselves; marked here so that it also holds under `-W error`.
_THIRD_PARTY = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"

# Tests mean the code of this checkout, not libraries that somebody built; those of the kernels build their own.
os.environ["GATEFX_NATIVE"] = "0"

CaptureFamily = Callable[[str], tuple[nn.Module, Captured]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings(_THIRD_PARTY), append=False)


@pytest.fixture(scope="session")
def tolerance() -> Mapping[torch.dtype, float]:
    return TOLERANCE


@pytest.fixture(scope="session")
def captured_family() -> CaptureFamily:
    """family → (its small model, the capture of it); made once, so leave both as they are."""

    @cache
    def make(family: str) -> tuple[nn.Module, Captured]:
        model = tiny(family)
        return model, capture(model, tiny_inputs(model, batch=3, tokens=9))

    return make


@pytest.fixture(scope="session")
def masked_tokens() -> Callable[[nn.Module, Mapping[str, Tensor], Mapping[int, float]], fx.GraphModule]:
    """(model, inputs, {cut: share}) → its graph with hard token gates whose scores are random, masked.

    Shares are those at a budget of one half, which `token_share` holds.
    """

    def make(model: nn.Module, inputs: Mapping[str, Tensor], shares: Mapping[int, float]) -> fx.GraphModule:
        def gate(config: MaskLoRA, *, layer: int, width: int, kept: tuple[int, ...]) -> TokenGate:
            share = SharePoint(shares[layer], shares[layer], 0.5)
            made = TokenGate(config, layer=layer, width=width, kept=kept, share=share, layers=1)
            nn.init.normal_(made.predictor.score.weight)
            return made

        options = MaskLoRA(floor=0.0)
        insert = InsertTokenGates(options, tuple(shares), gate)  # type: ignore[arg-type]  # its own options
        result = insert(capture(model, inputs).graph_module.eval())
        assert not result.reports[0].declined
        frozen = FreezeRegularization()(result.graph_module).graph_module
        harden = HardenTokenGates(0.5, lambda gate: HardTokenGate(gate, config=options))
        return harden(frozen).graph_module.eval()

    return make


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
