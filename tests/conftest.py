"""What tests share: one tolerance per dtype, and captured small models that no test may change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import pytest
import torch
from torch import nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.graph.capture import Captured, capture

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


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
