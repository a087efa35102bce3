"""gatefx passes in vLLM's compilation of a gated model, where its user asks for them.

    PASSES = [MyPass(option=1)]                                   in my_passes.py, on the path of vLLM's processes
    vllm serve OUT --dtype float32 --additional-config '{"gatefx_passes": "my_passes:PASSES"}'

They are appended to what stands at Inductor's hook in vLLM's `inductor_compile_config`, and replace nothing. vLLM keys
its cache of compiled code by the digests of the passes that stand there, so other options are compiled anew.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import InputError, PassError
from ...passes.contract import Pass, checked_passes
from .vllm_files import PASSES

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_NOTHING_COMPILED, _INDUCTOR = 0, "inductor"
"""vLLM's `CompilationMode.NONE`, and its name of the backend that has hooks for passes."""


def append_passes(vllm_config: VllmConfig) -> None:
    """Append the passes that `additional_config` names; nothing without the entry.

    Raises:
        InputError: no such passes, or a configuration in which Inductor compiles nothing.
        PassError: a pass stands before one that it must follow.
    """
    given = vllm_config.additional_config
    if not isinstance(given, Mapping) or PASSES not in given:
        return
    passes = _resolved(given[PASSES])
    config = vllm_config.compilation_config
    if config.mode == _NOTHING_COMPILED or config.backend != _INDUCTOR:
        raise InputError(
            "Passes are named for vLLM's compilation by Inductor, which is off.",
            given=f"{PASSES}={given[PASSES]!r}, compilation mode {config.mode!r}, backend {config.backend!r}",
            expected="a model that Inductor compiles",
            remedy=f"drop --enforce-eager and --enable-lora (vLLM compiles no model with LoRA on a CPU), or {PASSES}",
        )
    from torch._inductor import config as inductor_config

    from ...passes.lower.inductor import HOOK, InductorPass, chained
    from ...passes.pipeline import Pipeline

    options = config.inductor_compile_config
    standing = options.get(HOOK, inductor_config.post_grad_custom_pre_pass)
    if not (isinstance(standing, list) and InductorPass(Pipeline(tuple(passes))) in standing):
        options[HOOK] = chained(passes, standing)


def _resolved(place: object) -> Sequence[Pass]:
    """The passes at "package.module:NAME".

    Raises:
        InputError: nothing of that name, or no passes.
    """
    try:
        return checked_passes(pkgutil.resolve_name(str(place)))
    except (ValueError, ImportError, AttributeError, PassError) as error:
        raise InputError(
            f"{PASSES} names no passes.",
            given=f"{place!r}: {error}",
            expected='"package.module:NAME", the place of a list of gatefx passes',
            remedy="put them into a module on PYTHONPATH of every process of vLLM",
        ) from error
