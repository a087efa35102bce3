from __future__ import annotations

import math
from typing import Any

import pytest

from gatefx.errors import ArtifactError
from gatefx.runtime.sessions.decoder_facts import facts_from

_TOLD: dict[str, Any] = {"vocabulary": 100, "positions": 128, "stop": [2], "pad": 0}


def test_folders_of_earlier_versions_say_less() -> None:
    facts = facts_from({"methods": ["masklora"], "decoder": _TOLD})
    assert (facts.vocabulary, facts.positions, facts.stop, facts.pad, facts.start) == (100, 128, (2,), 0, ())
    assert facts.chooses == {"masklora": math.inf}, "whoever may choose is taken to"
    assert (facts.static, facts.streams) == (False, ())


def test_what_a_cache_is_and_who_reads_parts_is_told() -> None:
    told = {**_TOLD, "chooses": {"masklora": 1.0}, "cache": "static", "streams": ["masklora"], "start": [1]}
    facts = facts_from({"methods": ["masklora"], "decoder": told})
    assert (facts.static, facts.streams, facts.start, facts.chooses) == (True, ("masklora",), (1,), {"masklora": 1.0})


@pytest.mark.parametrize("decoder", [None, {}, {**_TOLD, "vocabulary": "many"}, {**_TOLD, "stop": 2}])
def test_a_manifest_without_them_is_refused(decoder: Any) -> None:
    with pytest.raises(ArtifactError, match="what its decoder takes"):
        facts_from({"methods": [], "decoder": decoder})
