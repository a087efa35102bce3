"""The sizes that a graph is built for: one range for each axis that its inputs leave open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import InputError


@dataclass(frozen=True)
class AxisRange:
    """Sizes of one open axis: the least, the one to tune for, and the most.

    Raises:
        InputError: sizes that are not positive or not in this order.
    """

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise InputError(
                "An axis needs sizes in order.",
                given=f"least {self.least}, usual {self.usual}, most {self.most}",
                expected="1 <= least <= usual <= most",
            )


AxisRanges = Mapping[str, AxisRange]
"""Name of the axis, as the ONNX model's inputs spell it → its sizes."""
