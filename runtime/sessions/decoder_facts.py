"""What a folder's manifest says of its decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...errors import ArtifactError
from ..cache_names import GROWING, STATIC
from ..generation.engine import DecoderFacts


def facts_from(manifest: Mapping[str, Any]) -> DecoderFacts:
    """The facts that `export(…, generate=…)` wrote.

    Raises:
        ArtifactError: a manifest without them.
    """
    try:
        told = manifest["decoder"]
        return DecoderFacts(
            int(told["vocabulary"]),
            told["positions"],
            tuple(told["stop"]),
            int(told["pad"]),
            tuple(told.get("start", ())),  # folders of earlier versions hold decoders alone
            told.get("chooses", dict.fromkeys(manifest["methods"], math.inf)),  # and do not say who chooses
            told.get("cache", GROWING) == STATIC,
            tuple(told.get("streams", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            "The artifact does not say what its decoder takes.",
            given=str(manifest.get("decoder")),
            expected="a folder that gatefx.export(…, generate=True) wrote",
        ) from error
