"""What sessions take; types and sizes are tried on a session in `test_onnxruntime.py`."""

from __future__ import annotations

import numpy as np
import pytest

from gatefx.errors import InputError
from gatefx.runtime.sessions.inputs import feed
from gatefx.runtime.sessions.protocol import TensorSpec

IDS, OTHER = (TensorSpec(name, np.dtype("int64"), ("batch", "sequence")) for name in ("decoder_input_ids", "places"))


def test_ids_below_zero_are_refused_though_engines_would_read_them_from_the_end() -> None:
    with pytest.raises(InputError, match="decoder_input_ids") as caught:
        feed({"decoder_input_ids": [[5, -100]]}, [IDS])
    assert "-100" in caught.value.given
    assert feed({"places": [[5, -1]]}, [OTHER])["places"].tolist() == [[5, -1]]


def test_inputs_without_names_are_refused() -> None:
    with pytest.raises(InputError, match="by name") as caught:
        feed([[5, 6]], [IDS])  # type: ignore[arg-type]
    assert "decoder_input_ids" in caught.value.expected
