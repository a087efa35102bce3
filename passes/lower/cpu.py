"""Lower to torch on this CPU: layers and their gated adapters run as one native kernel each, over packed weights.

The graph stays a torch graph: it compiles, and its budget is the tensor of the model it came from.
"""

from __future__ import annotations

from ...errors import ProviderError
from ...runtime.native.torch_kernels import use_torch_kernels
from ..chain import Chain
from ..graph.edit import copy_graph
from ..recovery import RecoveringProgram
from ..simplify.fuse_updates import FuseUpdates
from .cpu_program import CpuProgram
from .pack_layers import PackLayers


def lower_cpu(model: RecoveringProgram) -> CpuProgram:
    """A program that answers as `model` does, from packed weights where a layer decides.

    Raises:
        ProviderError: the native kernels are not there, the model is on another device, or no layer can be packed.
    """
    status = use_torch_kernels()
    if not status.active:
        raise ProviderError(
            "The native kernels for torch are not there.", given=status.reason, expected="`gatefx build-native`"
        )
    if model.device.type != "cpu":
        raise ProviderError("Native kernels run on the CPU.", given=str(model.device), expected="fast.cpu().for_cpu()")
    chain = Chain(model.graph_module).then(FuseUpdates(zero_bias=True), PackLayers())
    *_, packed = chain.reports
    if not packed.fired:
        reasons = sorted({item.reason for report in chain.reports for item in report.declined})
        raise ProviderError(
            "No layer of this model can run by the native kernels.",
            given="; ".join(reasons) or "no adapter that decides at run time in an operator",
            expected="float32 or float64, and sites of the forms 'gathered', 'skipping' or 'routed' in fast.sites",
            remedy="call the model itself: nothing is left to pack",
        )
    # A copy holds what its nodes read: without the weights that were packed.
    lowered = CpuProgram(
        copy_graph(chain.graph),
        loss=model.loss,
        model_config=model.config,
        report=model.report.extended(*chain.reports),
    )
    lowered.recovery = model.recovery
    return lowered.eval().requires_grad_(False)
