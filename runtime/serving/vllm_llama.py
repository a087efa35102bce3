"""Llama with gated adapters as vLLM runs it: its layers, and on top of each what the site's program adds.

    hidden (N, d) ─qkv_proj─▶ q | k | v (N, …) ─▶ q + update_q(q, hidden) | k + … | v + …

N tokens of any requests. vLLM fuses q, k and v, and gate and up: each program gets its own columns. vLLM makes this
class for folders of `vllm_folder.py`, in each of its processes, by the name that `vllm_plugin.py` registered.

vLLM compiles it as it compiles Llama, one graph for all layers where it does so on a CPU. Programs are modules of their
layers, so that their weights have names there, as the layers' own have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM

from ...errors import InputError, SiteError
from ..artifact import Artifact
from .vllm_files import SUFFIX, UPDATE
from .vllm_passes import append_passes

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""vLLM's layer → the layers it is made of, in order."""

_PROGRAM = "gatefx_update_"
"""How a layer's programs are named among its modules, before the place of the first column that they update."""


class GatefxLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]  # its base is only known where vLLM is
    """Its weights are the base model's; the programs hold their own."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        _check(vllm_config)
        append_passes(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        programs = dict(_programs(Path(vllm_config.model_config.model)))
        for name, layer in list(self.named_modules()):
            columns = list(_columns(name, layer, programs))
            for place, program in columns:
                layer.add_module(f"{_PROGRAM}{place.start}", program)
            if columns:
                layer.register_forward_hook(_hook([place for place, _ in columns]))
        if programs:
            raise SiteError(
                "The folder has adapters on layers that this model does not have.",
                given=", ".join(sorted(programs)),
                expected="the layers of the base model's architecture",
            )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the base model's; those of the programs came with them, and vLLM is told so."""
        loaded: set[str] = super().load_weights(weights)
        return loaded | {name for name, _ in self.named_parameters() if f".{_PROGRAM}" in name}


def _check(vllm_config: VllmConfig) -> None:
    """Refuse what the programs were not written for.

    Raises:
        InputError: another type than float32, or a layer that is split over devices.
    """
    dtype, parts = vllm_config.model_config.dtype, vllm_config.parallel_config.tensor_parallel_size
    if dtype != torch.float32 or parts != 1:
        raise InputError(
            "Gated adapters run in float32 and on whole layers.",
            given=f"dtype {dtype}, tensor parallel size {parts}",
            expected="torch.float32, 1",
            remedy="vllm serve FOLDER --dtype float32",
        )


def _programs(folder: Path) -> Iterator[tuple[str, nn.Module]]:
    """Site → its update of base (1, N, d_out) and x (1, N, d_in); every hash of the folder is checked."""
    artifact = Artifact.open(folder)
    for file in sorted(artifact.path.glob(f"{UPDATE}*{SUFFIX}")):
        loaded = torch.export.load(file).module(check_guards=False)
        # The same as a plain module, for vLLM calls eval(), which exported ones refuse.
        yield file.name.removeprefix(UPDATE).removesuffix(SUFFIX), fx.GraphModule(loaded, loaded.graph)


def _columns(name: str, layer: nn.Module, programs: dict[str, nn.Module]) -> Iterator[tuple[slice, nn.Module]]:
    """The programs of a layer, taken out of `programs`, each with the columns of the layer's output that it updates."""
    parent, _, own = name.rpartition(".")
    parts = _FUSED.get(own, (own,))
    sizes: list[Any] = list(layer.output_partition_sizes) if own in _FUSED else [None]  # type: ignore[arg-type]
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        program = programs.pop(f"{parent}.{part}", None)
        if program is not None:
            yield slice(start, None if size is None else start + size), program
        start += size or 0


def _hook(places: list[slice]) -> Callable[[nn.Module, tuple[Tensor, ...], Any], Any]:
    def add(layer: nn.Module, given: tuple[Tensor, ...], answer: Any) -> Any:
        output, bias = answer
        x = given[0].unsqueeze(0)
        updated = output.clone()
        for place in places:
            update = layer.get_submodule(f"{_PROGRAM}{place.start}")
            updated[:, place] += update(output[:, place].unsqueeze(0), x).squeeze(0)
        return updated, bias

    return add
