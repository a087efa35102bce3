"""What tests share: one tolerance per dtype, and captured small models that no test may change."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.deploy import optimize
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs
from gatefx.models.token_gate import SharePoint, TokenGate
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.gate.token_gate import InsertTokenGates
from gatefx.passes.graph import capture as capture_module
from gatefx.passes.graph.capture import Captured, capture
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.token_gate import HardenTokenGates

from .traces import SharedTraces

#: Largest absolute difference that reordered arithmetic may make on values of order one.
TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}
)

#: What third-party packages warn about among themselves; marked here so that it also holds under `-W error`.
_THIRD_PARTY = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"

# Tests keep traces, which are many objects: less often than every few hundred new ones, they are searched for garbage.
gc.set_threshold(100_000, 20, 20)

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


@pytest.fixture(scope="session", autouse=True)
def _shared_traces() -> Iterator[None]:
    with patch.object(capture_module, "_export", SharedTraces(capture_module._export)):
        yield


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def adapted_decoder() -> Callable[..., nn.Module]:
    """family → its small language model with PEFT's LoRA, whose B shows, in eval mode."""

    @cache
    def make(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=family == "gpt2")  # Conv1D
        model = get_peft_model(tiny_decoder(family).to(dtype), adapter)
        random = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:  # both: PEFT draws A from whatever state torch is in
                parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def pruned_decoder(adapted_decoder: Callable[..., nn.Module]) -> Callable[..., DeployedModel]:
    """(family, {cut: share}, dtype) → masklora deployed on it, with predictors that a few steps fitted; made once."""

    @cache
    def make(
        family: str,
        keep: tuple[tuple[int, float], ...] = ((1, 0.5),),
        dtype: torch.dtype = torch.float32,
        scores: Any = "predicted",
    ) -> DeployedModel:
        data = [tiny_inputs(family, batch=4, tokens=24, seed=seed) for seed in range(3)]
        method = MaskLoRA(keep=keep, floor=0.0, scores=scores)
        model = adapted_decoder(family, dtype)
        return optimize(model, method, data=data, distill_steps=5, verify=True, progress=False)

    return make


@pytest.fixture(scope="session")
def ragged_prompts() -> Callable[..., tuple[Tensor, Tensor]]:
    """(batch, tokens, side, seed) → ids and mask (B, T) of small decoders, padded on that side."""

    def make(batch: int = 4, tokens: int = 22, side: str = "right", seed: int = 4) -> tuple[Tensor, Tensor]:
        given = tiny_inputs("llama", batch=batch, tokens=tokens, seed=seed)
        ids, mask = given["input_ids"], given["attention_mask"]
        if side == "left":
            shifts = (tokens - mask.sum(1)).tolist()
            ids, mask = (torch.stack([row.roll(k) for row, k in zip(x, shifts, strict=True)]) for x in (ids, mask))
        return ids, mask

    return make
