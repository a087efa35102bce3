"""Passes inside transformers' own export call: its exporters hand the graph to gatefx before they convert it.

    config = OnnxConfig(dynamic=True, quantizer=passes_for_exporters(FoldAdapters()))
    exported = OnnxExporter().export(peft_model.base_model.model, batch, config=config)

transformers calls the hook a quantizer; any rewrite of the exported graph may stand there, and every format that starts
from `torch.export` takes the result. Experimental, like `transformers.exporters` itself, which exists from 5.23 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from ...runtime.exported_model import checked_transformers
from ..contract import Pass
from ..pipeline import Pipeline
from ..report import PassReport

if TYPE_CHECKING:
    from transformers.exporters.quantizers import ExportQuantizer


def passes_for_exporters(*passes: Pass) -> ExportQuantizer:
    """The hook that runs `passes` on an exported graph, in that order.

    Its attribute `reports` has, after an export, what each pass did and declined.

    Raises:
        PassError: an order that the passes do not allow.
        MissingDependencyError: transformers is missing, or older than its exporters.
        GatefxError: a transformers whose exporters are newer than those known here.
    """
    checked_transformers("Running passes in transformers' exporters")
    from transformers.exporters.configs import ExportFormat
    from transformers.exporters.quantizers import ExportQuantizer

    pipeline = Pipeline(passes)

    class ExporterPasses(ExportQuantizer):  # type: ignore[misc]  # its base is only known where transformers is
        """Runs the pipeline where a quantizer would stand."""

        quantizes_fx_graph = True
        supported_formats = tuple(ExportFormat)
        reports: tuple[PassReport, ...] = ()

        def quantize(self, model: fx.GraphModule, sample_inputs: dict[str, Any], export_format: str) -> fx.GraphModule:
            """The graph that the passes leave of `model`; they need no samples and know no format."""
            del sample_inputs, export_format
            result = pipeline(model)
            self.reports = result.reports
            # Passes edit a copy whose inputs and outputs are flat; the exporters call it as they call `model`.
            result.graph_module.graph.set_codegen(model.graph._codegen)
            result.graph_module.recompile()
            return result.graph_module

    return ExporterPasses()
