"""What tests of operators share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gatefx.runtime.native.places import FILES


@pytest.fixture
def portable_operators() -> None:
    """Skips where another test of this process has had torch load the native kernels: they check by themselves.

    Their refusals are held in `tests/runtime/native`; a loaded library cannot be taken back.
    """
    if any(Path(path).name == FILES["torch"] for path in torch.ops.loaded_libraries):
        pytest.skip("the native kernels are loaded in this process")
