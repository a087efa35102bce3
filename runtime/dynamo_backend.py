"""`torch.compile(fast, backend="gatefx")`: a deployed model's graph, compiled by Inductor, or run by ONNX Runtime.

`optimize` has run its passes before Dynamo traces the model, so the graph goes on as it is; `options={"passes": [...]}`
runs more of them inside Inductor, on models in training too. `options={"lower": "onnxruntime"}` is for inference.
torch finds the function by its entry point in the group `torch_dynamo_backends`, and imports it when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor
from torch.fx import GraphModule

from ..errors import GatefxError

INDUCTOR, ONNXRUNTIME = "inductor", "onnxruntime"
KNOWN_OPTIONS = {"lower": (INDUCTOR, ONNXRUNTIME), "passes": (INDUCTOR,), "provider": (ONNXRUNTIME,)}
"""What `torch.compile(…, options={…})` may name, each with the lowerings that take it."""


def gatefx(
    graph_module: GraphModule,
    example_inputs: Sequence[Tensor | int],
    *,
    options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The graph as compiled code.

    Args:
        graph_module: what Dynamo traced; example_inputs: of its placeholders, sizes among them.
        mode: of `torch.compile`, whose modes are Inductor's: none is taken.
        options: of `torch.compile`: `lower`, "inductor" (if not given) or "onnxruntime"; for Inductor `passes`, gatefx
            passes for its graph (`passes/lower/inductor.py`); for ONNX Runtime its `provider`, "cpu" if not given.

    Raises:
        GatefxError: an unknown option, or one that the lowering does not take; Dynamo wraps it in its
            `BackendCompilerFailed`. What ONNX Runtime refuses is raised by the first call.
    """
    if mode is not None:
        raise GatefxError(
            "The backend 'gatefx' takes no mode.",
            given=f"mode={mode!r}",
            expected="options that torch.compile gives to Inductor by its config",
            remedy="torch._inductor.config.patch(…) around the first call",
        )
    given = dict(options or {})
    lower = _lowering(given)
    if lower == ONNXRUNTIME:
        provider = _provider(given.get("provider", "cpu"))
        from .dynamo_onnxruntime import OnnxRuntimeCall

        return OnnxRuntimeCall(graph_module, provider)
    from ..passes.contract import checked_passes

    passes = checked_passes(given.get("passes", ()))
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    from ..passes.lower.inductor import patched

    patches = patched(passes, config) if passes else None
    # Its other results, files and weights, come of packaging ahead of time alone.
    return cast("Callable[..., Any]", compile_fx(graph_module, example_inputs, config_patches=patches))


def _lowering(options: Mapping[str, object]) -> str:
    """The lowering that options ask for.

    Raises:
        GatefxError: an unknown one, or options that are not its own.
    """
    unknown = sorted(set(options) - set(KNOWN_OPTIONS))
    if unknown:
        raise GatefxError(
            "The backend 'gatefx' of torch.compile does not know these options.",
            given=", ".join(unknown),
            expected=", ".join(KNOWN_OPTIONS),
            remedy="Those of Inductor go with backend='inductor'.",
        )
    lower = options.get("lower", INDUCTOR)
    if lower not in KNOWN_OPTIONS["lower"]:
        raise GatefxError(
            "The option 'lower' names what runs the graph.",
            given=repr(lower),
            expected=" or ".join(map(repr, KNOWN_OPTIONS["lower"])),
        )
    odd = sorted(name for name in options if lower not in KNOWN_OPTIONS[name])
    if odd:
        raise GatefxError(
            f"These options do not go with lower={lower!r}.",
            given=", ".join(odd),
            expected=", ".join(name for name, takers in KNOWN_OPTIONS.items() if lower in takers),
        )
    return str(lower)


def _provider(given: object) -> str:
    """The provider of an option.

    Raises:
        GatefxError: it is no name.
    """
    if isinstance(given, str) and given:
        return given
    raise GatefxError(
        "The option 'provider' names one of ONNX Runtime.",
        given=repr(given),
        expected="'cpu', 'cuda', 'tensorrt' or ONNX Runtime's own name",
    )
