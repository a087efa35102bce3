"""`torch.compile(fast, backend="gatefx")`: a deployed model's graph, compiled by Inductor.

`optimize` has run its passes before Dynamo traces the model, so the graph goes on as it is; `options={"passes": [...]}`
runs more of them inside Inductor, on models in training too.
torch finds the function by its entry point in the group `torch_dynamo_backends`, and imports it when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from torch.fx import GraphModule

from ..errors import GatefxError

if TYPE_CHECKING:
    from ..passes.contract import Pass

KNOWN_OPTIONS = ("passes",)
"""What `torch.compile(…, options={…})` may name."""


def gatefx(
    graph_module: GraphModule,
    example_inputs: Sequence[Tensor | int],
    *,
    options: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """The graph as compiled code.

    Args:
        graph_module: what Dynamo traced; example_inputs: of its placeholders, sizes among them.
        options: of `torch.compile`: `passes`, gatefx passes for Inductor's graph (`passes/lower/inductor.py`).

    Raises:
        GatefxError: an unknown option, or passes that are none; Dynamo wraps it in its `BackendCompilerFailed`.
    """
    unknown = sorted(set(options or ()) - set(KNOWN_OPTIONS))
    if unknown:
        raise GatefxError(
            "The backend 'gatefx' of torch.compile does not know these options.",
            given=", ".join(unknown),
            expected=", ".join(KNOWN_OPTIONS),
            remedy="Those of Inductor go with backend='inductor'.",
        )
    passes = _passes((options or {}).get("passes", ()))
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    from ..passes.lower.inductor import patched

    patches = patched(passes, config) if passes else None
    # Its other results, files and weights, come of packaging ahead of time alone.
    return cast("Callable[..., Any]", compile_fx(graph_module, example_inputs, config_patches=patches))


def _passes(given: object) -> Sequence[Pass]:
    """The passes of an option.

    Raises:
        GatefxError: they are none.
    """
    from ..passes.contract import Pass

    if isinstance(given, (list, tuple)) and all(isinstance(item, Pass) for item in given):
        return given
    raise GatefxError(
        "The option 'passes' holds gatefx passes.",
        given=repr(given),
        expected="a list of objects of subclasses of gatefx.passes.contract.Pass",
    )
