"""Every method on every family of small random models: what works, and what is declined for which reason.

    python benchmarks/families.py [--families bert gpt2 …] [--methods ccm gatera …] [--cells cells.jsonl]

Prints a row a cell, and writes benchmarks/families.md where all families and methods are tried. `--cells` keeps cells
as they come in, so that a run that was stopped goes on; delete the file after a change of the code.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from gatefx.models.configs.catalogue import METHODS
from gatefx.models.tiny import ALL_FAMILIES
from gatefx.tools.family_markdown import markdown
from gatefx.tools.family_table import Cell, State, try_method

OUT = Path(__file__).with_name("families.md")
PACKAGES = ("torch", "transformers", "numpy")


def tried(family: str, method: str) -> Cell:
    try:
        return try_method(family, method)
    except Exception as error:  # noqa: BLE001  # a crash is what this table is to find: it gets its cell, and is shown
        traceback.print_exc()
        return Cell(family, method, State.WRONG, f"crash: {type(error).__name__}: {error}"[:300])


def cells(families: Sequence[str], methods: Sequence[str], kept: Path | None) -> Iterator[Cell]:
    known: dict[tuple[str, str], Cell] = {}
    if kept is not None and kept.exists():
        rows = (json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines())
        known = {(row["family"], row["method"]): Cell(**{**row, "state": State(row["state"])}) for row in rows}
    for method in methods:
        for family in families:
            started = time.perf_counter()
            cell = known.get((family, method)) or tried(family, method)
            if kept is not None and (family, method) not in known:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(cell)) + "\n")
            print(
                f"{family:13} {method:12} {cell.state:9} {time.perf_counter() - started:5.1f} s  {cell.detail}",
                flush=True,
            )
            yield cell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=ALL_FAMILIES, default=ALL_FAMILIES)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--cells", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found = list(cells(args.families, args.methods, args.cells))
    if len(found) == len(ALL_FAMILIES) * len(METHODS):
        versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        machine = f"{platform.machine()}, {os.cpu_count()} cores, one torch thread"
        facts = f"{datetime.date.today()}; {machine}; Python {platform.python_version()}, {versions}."
        OUT.write_text(markdown(found, "python benchmarks/families.py", facts), encoding="utf-8")
        print(f"written: {OUT}")
    return int(any(cell.state is State.WRONG for cell in found))


if __name__ == "__main__":
    raise SystemExit(main())
