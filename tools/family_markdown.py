"""The table of families and methods as Markdown: a row a family, and what each cell declined or did below it."""

from __future__ import annotations

from collections.abc import Sequence

from .family_table import Cell, State

_HEAD = """# Which method works on which family

    {command}

{facts}

Small random models: two layers, 32 channels, rank 8, every linear layer; budgets of half (ccm 4 of 8 ranks). **works**:
prepared, trained (the loss fell in three steps), deployed; the deployed graph answers like its masked reference within
1e-5 of the largest logit on other batch sizes, lengths and ragged padding. *declined*: refused with an error of
gatefx's own, or nothing was gated, for the reason in the note. {counts}
"""


def markdown(cells: Sequence[Cell], command: str, facts: str) -> str:
    """The page.

    Args:
        cells: of every family and method; command: that makes the page; facts: date, machine and versions.
    """
    families = list(dict.fromkeys(cell.family for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    by_place = {(cell.family, cell.method): cell for cell in cells}
    reasons = list(dict.fromkeys(cell.detail for cell in cells if cell.state is not State.WORKS))
    counts = ", ".join(f"{sum(cell.state is state for cell in cells)} {state}" for state in State)
    lines = [_HEAD.format(command=command, facts=facts, counts=f"Cells: {counts}.")]
    lines += [f"| family | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for family in families:
        texts = (_text(by_place[family, method], reasons) for method in methods)
        lines.append(f"| {family} | {' | '.join(texts)} |")
    lines += ["", "## Why not", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    lines += ["", "## What was done with the sites", ""]
    for cell in cells:
        if cell.state is State.WORKS:
            lines.append(f"- {cell.family}, {cell.method}: {cell.detail}")
    return "\n".join(lines) + "\n"


def _text(cell: Cell, reasons: Sequence[str]) -> str:
    if cell.state is State.WORKS:
        return "works"
    mark = "**wrong**" if cell.state is State.WRONG else "*declined*"
    return f"{mark} ({reasons.index(cell.detail) + 1})"
