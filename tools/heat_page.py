"""The rows of a token heat map, and the page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import missing_package

TEMPLATE = "heat_map.html.jinja"


@dataclass(frozen=True)
class HeatRow:
    """One row of the map.

    Attributes:
        label: the cut or the layer; kind: "kept" (1 where the cut keeps the token) or "updated" (share of the layer's
            gated sites at which the token takes the update); values: one in [0, 1] per token.
    """

    label: str
    kind: str
    values: tuple[float, ...]


def write_heat_map(rows: Sequence[HeatRow], tokens: Sequence[str], path: Path, *, title: str) -> None:
    """Write the rows as one HTML file that needs nothing beside it.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise missing_package("jinja2", extra="report", feature="the token heat map") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template(TEMPLATE).render(rows=rows, tokens=tokens, title=title)
    path.write_text(page, encoding="utf-8")
