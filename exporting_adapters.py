"""export(…, adapters={name: folder}): one ONNX model, and beside it an `.onnx_adapter` file an adapter.

All of them are plain LoRA over one base model. What one of them brings is an input of the model, whose default is what
the exported model brings itself: A and B of every layer that it adapts, heads and biases that were trained.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError, SiteError
from .passes.adapter_files import beside_names, plain_sites
from .passes.deployed import DeployedModel
from .passes.graph.edit import get_tensor
from .passes.lower.open_adapters import OpenSite, as_inputs, open_site
from .passes.plain_adapters import PlainAdapter, read_plain_adapter
from .runtime.sessions.onnxruntime_adapters import FIELD, SUFFIX, write_adapter

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class OpenModel:
    """A model whose adapters may be exchanged.

    Attributes:
        sites: its layers; beside: names of heads and biases in a folder → in the graph.
        adapters: name → its inputs, by their names in the ONNX model.
    """

    sites: tuple[OpenSite, ...]
    beside: Mapping[str, str]
    adapters: Mapping[str, Mapping[str, Tensor]]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs that an adapter brings."""
        return (*(name for site in self.sites for name in (site.a, site.b)), *self.beside.values())

    def write(self, folder: Path) -> dict[str, dict[str, str]]:
        """Write a file an adapter; the manifest's field that names them."""
        files = {name: f"{name}{SUFFIX}" for name in self.adapters}
        for name, inputs in self.adapters.items():
            write_adapter(folder / files[name], {key: value.numpy() for key, value in inputs.items()})
        return {FIELD: files}


def open_model(
    model: DeployedModel, adapters: Mapping[str, DeployedModel | str | Path] | None, *, generate: bool = False
) -> OpenModel | None:
    """Read adapters and see that they fit the model; None where there are none.

    Raises:
        InputError: `generate`; a name that is no file name; an adapter that is neither a folder nor a deployed model.
        SiteError: the model or an adapter is more than plain LoRA, or the adapter changes what the model does not.
        ArtifactError: a folder that cannot be read.
    """
    if not adapters:
        return None
    if generate:
        raise InputError(
            "A decoder with its cache keeps the adapter that it has.",
            given="generate=True and adapters",
            expected="one of them",
            remedy="leave generate out, or export a folder for each adapter",
        )
    sites = tuple(open_site(site) for site in plain_sites(model))
    whole, biases = beside_names(model, {site.path for site in sites})
    beside = {**whole, **biases}
    shapes = {key: get_tensor(model.graph_module, name).shape for key, name in beside.items()}
    found = {}
    for name, source in adapters.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError("An adapter's name becomes a file's.", given=repr(name), expected="letters, digits, . _ -")
        adapter = _read(name, source)
        _check_fits(name, adapter, sites, shapes)
        values = dict(pair for site in sites for pair in _inputs(site, adapter))
        values |= {beside[key]: value.contiguous() for key, value in adapter.beside.items()}
        found[name] = values
    return OpenModel(sites, beside, found)


def _read(name: str, source: object) -> PlainAdapter:
    if isinstance(source, DeployedModel):
        with tempfile.TemporaryDirectory() as scratch:
            return read_plain_adapter(source.save_adapter(Path(scratch) / "adapter"))
    if isinstance(source, (str, Path)):
        return read_plain_adapter(Path(source))
    raise InputError(
        f"The adapter {name!r} cannot be read.",
        given=type(source).__name__,
        expected="a folder of PEFT's, or what gatefx.optimize returned",
    )


def _check_fits(
    name: str, adapter: PlainAdapter, sites: tuple[OpenSite, ...], shapes: Mapping[str, torch.Size]
) -> None:
    layers = {site.path: site for site in sites}
    odd = [path for path in adapter.factors if path not in layers]
    odd += [key for key in adapter.beside if key not in shapes]
    if odd:
        raise SiteError(
            f"The adapter {name!r} changes what the model's own does not.",
            given=", ".join(odd),
            expected="the layers and heads that the exported model adapts, or some of them",
            remedy="export the model whose adapter has the most layers",
        )
    lacking = [key for key in shapes if key not in adapter.beside]
    if lacking:
        raise SiteError(
            f"The adapter {name!r} lacks what was trained beside the model's own.",
            given=f"no {', '.join(lacking)}",
            expected="heads and biases of its own",
            remedy="save it with modules_to_save, as PEFT does for tasks with a head",
        )
    wrong = [path for path, pair in adapter.factors.items() if not _fits(layers[path], *pair)]
    wrong += [key for key, value in adapter.beside.items() if value.shape != shapes[key]]
    if wrong:
        raise SiteError(
            f"The adapter {name!r} has other sizes.", given=", ".join(wrong), expected="the same base model"
        )


def _fits(site: OpenSite, lora_a: Tensor, lora_b: Tensor) -> bool:
    return lora_a.shape == (len(lora_a), site.d_in) and lora_b.shape == (site.d_out, len(lora_a))


def _inputs(site: OpenSite, adapter: PlainAdapter) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """The inputs of a layer; one rank of zeros where the adapter leaves the layer alone."""
    empty = torch.zeros(1, site.d_in), torch.zeros(site.d_out, 1)
    down, up = as_inputs(*adapter.factors.get(site.path, empty))
    return (site.a, down), (site.b, up)
