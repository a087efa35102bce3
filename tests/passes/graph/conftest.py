from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from gatefx.passes.graph import capture as capture_module


@pytest.fixture(autouse=True)
def _own_traces() -> Iterator[None]:
    """What these tests are about is traced for each of them."""
    with patch.object(capture_module, "_export", capture_module._export.trace):
        yield
