"""A file of losses of continuations, one line each, that a run may leave off and go on with; and its table.

Nothing of gatefx is imported: the reference library runs in an environment of its own and writes to the same file.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

FULL, REFERENCE = "full cache", "kvpress"
Key = tuple[int, str, float, int]
"""Prompt's length, selection, share of the prompt kept, number of the window."""


class Losses:
    """Losses in nats a token.

    Attributes:
        known: by key, what the file holds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        self.known: dict[Key, float] = {(row[0], row[1], row[2], row[3]): row[4] for row in rows}

    def add(self, key: Key, loss: float) -> None:
        """Append one."""
        with self._path.open("a") as file:
            file.write(json.dumps([*key, loss]) + "\n")
        self.known[key] = loss

    def table(self) -> str:
        """A row for each length, selection and share: windows, perplexity, gap to the same library's full cache."""
        rows = []
        for length, name, share in dict.fromkeys(key[:3] for key in sorted(self.known)):
            found = {key[3]: loss for key, loss in self.known.items() if key[:3] == (length, name, share)}
            full = f"{REFERENCE} {FULL}" if name.startswith(REFERENCE) else FULL
            gaps = [loss - self.known[length, full, 1.0, window] for window, loss in found.items()]
            error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
            rows.append(
                f"| {length} | {name} | {share} | {len(found)} | {math.exp(statistics.mean(found.values())):.2f} | "
                f"{statistics.mean(gaps):+.3f} ± {error:.3f} |"
            )
        return "\n".join(rows)
