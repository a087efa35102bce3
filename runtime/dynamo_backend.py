"""`torch.compile(fast, backend="gatefx")`: a deployed model's graph, compiled by Inductor.

`optimize` has run every pass before Dynamo traces the model, so the graph goes on as it is; the name takes no options.
torch finds the function by its entry point in the group `torch_dynamo_backends`, and imports it when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor
from torch.fx import GraphModule

from ..errors import GatefxError

KNOWN_OPTIONS: tuple[str, ...] = ()
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
        options: of `torch.compile`; none are known.

    Raises:
        GatefxError: an unknown option; Dynamo wraps it in its `BackendCompilerFailed`.
    """
    unknown = sorted(set(options or ()) - set(KNOWN_OPTIONS))
    if unknown:
        raise GatefxError(
            "The backend 'gatefx' of torch.compile does not know these options.",
            given=", ".join(unknown),
            expected=", ".join(KNOWN_OPTIONS) or "no options: none are known",
            remedy="Leave `options` out; those of Inductor go with backend='inductor'.",
        )
    from torch._inductor.compile_fx import compile_fx

    # Its other results, files and weights, come of packaging ahead of time alone.
    return cast("Callable[..., Any]", compile_fx(graph_module, example_inputs))
