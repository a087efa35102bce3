"""`gatefx inspect`: what a folder holds, after checking the hash of every file. Imports neither torch nor an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..runtime.artifact import Artifact
from .inspect_layers import LayerRow, layer_rows, layer_table

_MILLION = 1e6
_DECLINED_SHOWN = 8  # per pass, on the console; --json has them all


_UNITS = {
    "ccm": "ranks per example and site",
    "masklora": "of the tokens",
    "tspeft": "of the tokens take the update",
    "gatera": "of the tokens take the update",
    "weightlora": "sites",
}


def describe(folder: Path) -> dict[str, Any]:
    """The manifest of a verified folder, and beside each version it was written with the one installed here.

    Raises:
        ArtifactError: a file is missing, extra, truncated or edited.
    """
    artifact = Artifact.open(folder)
    manifest = dict(artifact.manifest)
    installed = {name: _installed(name) for name in manifest["versions"]}
    description = {"folder": str(folder), "verified": True, **manifest, "installed": installed}
    return {**description, **_trained(manifest)} if manifest.get("kind") == "gates" else description


def with_layers(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description with a row per transformer layer, as --json prints it."""
    return {**description, "layers": [{**asdict(row), "sparsity": row.sparsity} for row in _layers(description)]}


def show(description: Mapping[str, Any], console: Console) -> None:
    """Print a description for a person."""
    gates = description.get("kind") == "gates"
    what = "adapter and trained gates" if gates else f"exported model for {description.get('backend', 'an engine')}"
    console.print(f"[bold]{escape(str(description['folder']))}[/bold]  {what}; every file matches its hash")
    console.print(_facts(description))
    if gates:
        _show_gates(description, console)
    else:
        console.print(_sites(description["sites"]))
    show_report(description, console)
    console.print(_files(description["files"]))
    console.print(_versions(description))


def show_report(description: Mapping[str, Any], console: Console) -> None:
    """Print forms, passes, refusals, prediction and notes (rank distribution among them) where there are any."""
    report = description.get("report")
    if report is None:
        return
    console.print(f"forms: {forms(description['sites'])}")
    console.print(layer_table(_layers(description)))
    console.print(_passes(report["passes"]))
    for entry in report["passes"]:
        _declined(entry, console)
    prediction = report["facts"].get("ccm", {}).get("prediction")
    if prediction:
        console.print(f"prediction: {predicted(prediction)}")
    notes = [f"{entry['name']}: {note}" for entry in report["passes"] for note in entry["notes"]]
    for note in (*notes, *report["notes"]):
        console.print(f"note: {note}", markup=False)


def forms(sites: Sequence[Mapping[str, Any]]) -> str:
    """How many sites took each form, as "30 gathered, 7 merged"."""
    return ", ".join(f"{count} {form}" for form, count in Counter(site["form"] for site in sites).most_common())


def predicted(prediction: Mapping[str, Any]) -> str:
    """The cost model's figures in a sentence."""
    workload, even = prediction["workload"], prediction["break_even_tokens"]
    return (
        f"on {prediction['engine']}, {workload['batch']} inputs of {workload['tokens']} tokens: routing adds "
        f"{prediction['routed_seconds'] * 1e3:.3g} ms to the merged model (its router "
        f"{prediction['router_seconds'] * 1e3:.3g} ms), static LoRA {prediction['lora_seconds'] * 1e3:.3g} ms; adapter "
        f"FLOPs {prediction['adapter_flops_ratio']:.0%} of LoRA's; "
        + (f"the router's FLOPs pay from {even:.0f} tokens" if even is not None else "the router's FLOPs never pay")
    )


def _trained(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Adapters and facts of saved gates, without running them; older folders list LoRA sites alone."""
    facts: Mapping[str, Any] = manifest.get("facts", {})
    dropped = facts.get("weightlora", {}).get("dropped", ())
    rows = manifest.get("adapters", [{**site, "kind": "lora"} for site in manifest["sites"]])
    adapters = [{**row, "form": "dropped" if row["name"] in dropped else row["kind"]} for row in rows]
    return {"adapters": adapters, "facts": facts}


def _layers(description: Mapping[str, Any]) -> list[LayerRow]:
    if description.get("kind") == "gates":
        return layer_rows(description["adapters"], description["facts"])
    return layer_rows(description["sites"], description.get("report", {}).get("facts", {}))


def _show_gates(description: Mapping[str, Any], console: Console) -> None:
    """Sites and layers of saved gates, and on how many texts their figures were measured."""
    console.print(_adapters(description["adapters"]))
    console.print(layer_table(_layers(description)))
    texts = description.get("measured_on")
    if texts is None:
        console.print("ranks, tokens kept, updates skipped and gate means depend on texts: pass --text or --data")
    else:
        console.print(f"measured on {texts} text{'s' if texts > 1 else ''}")


def _facts(description: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    axes = description["axes"]
    rows = {
        "method": ", ".join(description["methods"]),
        **_gates(description["methods"]),
        **_decided(description.get("facts", {})),
        "inputs": ", ".join(f"{name} [{', '.join(axes.get(name, []))}]" for name in description["inputs"]),
        "outputs": ", ".join(description["outputs"]),
    }
    if "opset" in description:
        rows["opset"] = str(description["opset"])
    for name, entry in description.get("runtime_budgets", {}).items():
        budgets = [row[0] for row in entry["table"]]
        rows[f"{name} at run time"] = f"{min(budgets):g} to {max(budgets):g} {entry.get('unit', '')}".strip()
    for name, value in rows.items():
        table.add_row(f"[cyan]{name}[/cyan]", escape(value))
    return table


def _gates(methods: Mapping[str, Any]) -> dict[str, str]:
    """Budget of every method, and of ccm how it gates."""
    rows = {}
    for name, entry in methods.items():
        budget, options = entry["budget"], entry["options"]
        rows[f"{name} budget"] = "as trained" if budget is None else f"{budget:g} {_UNITS.get(name, '')}".strip()
        if name == "ccm":
            buckets = ", ".join(map(str, options["buckets"]))
            rows["gate"] = f"{options['gate']}, k by {options['k']}, buckets {buckets}"
    return rows


def _decided(facts: Mapping[str, Any]) -> dict[str, str]:
    """What trained gates say of all sites together."""
    rows = {}
    cuts = facts.get("masklora", {}).get("planned", ())
    if cuts:
        rows["cuts"] = ", ".join(f"{cut['share']:.0%} of the tokens after layer {cut['layer']}" for cut in cuts)
    gate = facts.get("gatera", {})
    if "threshold" in gate:
        rows["gatera gate"] = f"hard, g ≥ {gate['threshold']:.3g} takes the update"
    elif gate:
        rows["gatera gate"] = gate["gate"]
    dropped = facts.get("weightlora", {}).get("dropped", ())
    if dropped:
        rows["dropped"] = f"{len(dropped)} adapters"
    return rows


def _adapters(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{len(rows)} sites", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("rank", justify="right")
    table.add_column("form")
    for row in rows:
        table.add_row(escape(row["name"]), str(row["rank"]), row["form"])
    return table


def _sites(sites: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{len(sites)} sites", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    for title in ("in → out", "rank", "mean rank"):
        table.add_column(title, justify="right")
    table.add_column("form")
    for site in sites:
        size, mean = f"{site['d_in']} → {site['d_out']}", f"{site['mean_rank']:.2f}"
        table.add_row(escape(site["name"]), size, str(site["rank"]), mean, site["form"])
    return table


def _passes(passes: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="passes", title_justify="left", box=None, pad_edge=False)
    table.add_column("pass")
    for title in ("fired", "declined", "seconds"):
        table.add_column(title, justify="right")
    table.add_column("exactness")
    table.add_column("operators")
    for entry in passes:
        changes = ", ".join(f"{change:+d} {name}" for name, change in entry["op_changes"].items()) or "unchanged"
        counts = (str(len(entry["fired"])), str(len(entry["declined"])), f"{entry['seconds']:.2f}")
        table.add_row(escape(entry["name"]), *counts, escape(entry["exactness"]), escape(changes))
    return table


def _declined(entry: Mapping[str, Any], console: Console) -> None:
    declined = entry["declined"]
    for row in declined[:_DECLINED_SHOWN]:
        console.print(f"{entry['name']} declined {row['where']}: {row['reason']}", markup=False)
    if len(declined) > _DECLINED_SHOWN:
        console.print(f"{entry['name']} declined {len(declined) - _DECLINED_SHOWN} more (see --json)", markup=False)


def _files(files: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="files", title_justify="left", box=None, pad_edge=False)
    table.add_column("name")
    table.add_column("MB", justify="right")
    table.add_column("sha256")
    for name, entry in files.items():
        table.add_row(escape(name), f"{entry['bytes'] / _MILLION:.3f}", f"{entry['sha256'][:16]}…")
    return table


def _versions(description: Mapping[str, Any]) -> Table:
    table = Table(title="versions", title_justify="left", box=None, pad_edge=False)
    for title in ("package", "written with", "installed here"):
        table.add_column(title)
    for name, version in description["versions"].items():
        here = description["installed"][name]
        table.add_row(name, version or "none", here or "none")
    return table


def _installed(package: str) -> str | None:
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
