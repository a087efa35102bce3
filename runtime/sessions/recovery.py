"""Examples whose prediction is too uncertain, run again with another value of one replaceable buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ArtifactError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RecoveryRule:
    """When an example is run again.

    Attributes:
        output: logits (B, classes); bound: on the entropy of their softmax, in nats.
        initializer: the buffer that is fed 1 then: every token is kept.
    """

    output: str
    bound: float
    initializer: str

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> RecoveryRule | None:
        """The artifact's rule, None where it has none.

        Raises:
            ArtifactError: a rule that cannot be read.
        """
        entry = manifest.get("recovery")
        if entry is None:
            return None
        try:
            return cls(str(entry["output"]), float(entry["bound"]), str(entry["initializer"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "The artifact's rule of recovery cannot be used.",
                given=str(entry),
                expected='{"output": name, "bound": nats, "initializer": name}',
            ) from error

    def spiking(self, answers: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which examples to run again: their indices."""
        logits = answers[self.output].astype(np.float64)
        shifted = logits - logits.max(-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return np.flatnonzero(-(np.exp(logs) * logs).sum(-1) > self.bound)

    def recovered(
        self, answers: Arrays, fed: Arrays, batched: frozenset[str], run: Callable[[Arrays], Arrays]
    ) -> tuple[Arrays, int]:
        """Answers with those of spiking examples replaced, and how many there were.

        Args:
            fed: what the model was run on; batched: the names in it whose axis 0 counts examples.
        """
        rows = self.spiking(answers)
        if not len(rows):
            return answers, 0
        chosen = {name: value[rows] if name in batched else value for name, value in fed.items()}
        again = run({**chosen, self.initializer: np.ones((), dtype=np.float32)})
        merged = {name: value.copy() for name, value in answers.items()}
        for name, value in again.items():
            merged[name][rows] = value
        return merged, len(rows)
