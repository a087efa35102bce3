"""`gatefx export …`. Options and help only: each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .cli_options import (
    HELP,
    Base,
    BatchSize,
    BudgetText,
    Data,
    Debug,
    DistillSteps,
    Fold,
    Forms,
    FreezeStatic,
    Json,
    MaxLength,
    Method,
    Model,
    Out,
    Overwrite,
    TextColumn,
)
from .cli_result import print_result
from .errors_console import reported

if TYPE_CHECKING:
    from ..exporting_decoder import Generate

export_app = typer.Typer(help="Write a model for an engine.", no_args_is_help=True, context_settings=HELP)


@export_app.command("onnx")
def export_onnx(  # noqa: PLR0913, PLR0917  # every parameter is an option of the command
    model: Model,
    out: Out,
    method: Method = None,
    budget: BudgetText = None,
    data: Data = None,
    base: Base = None,
    text_column: TextColumn = None,
    max_length: MaxLength = 128,
    batch_size: BatchSize = 32,
    distill_steps: DistillSteps = 300,
    fold: Fold = None,
    freeze_static: FreezeStatic = False,
    forms: Forms = None,
    opset: Annotated[int, typer.Option(help="Version of standard ONNX.")] = 23,
    generate: Annotated[
        bool, typer.Option("--generate", help="Write a decoder's prefill and decode, with their cache.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Write a decoder's one graph with its cache, as Optimum generates with it.")
    ] = False,
    static: Annotated[
        bool, typer.Option("--static", help="With --generate: caches of fixed size, written in place.")
    ] = False,
    parts: Annotated[
        bool, typer.Option("--parts", help="With --generate: also the graph that reads prompts in parts.")
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help='A PEFT adapter to swap in per request, as "tweets=FOLDER"; several if repeated. Plain LoRA.'
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an ONNX folder that ONNX Runtime, transformers and gatefx.load open."""
    wanted = _generated(generate=generate, cache=cache, static=static, parts=parts)
    with reported(debug):
        from .compiling import CompileRequest, parse_adapters, parse_budgets, run_export

        adapters = parse_adapters(adapter)
        request = CompileRequest(
            model, out, tuple(method or ()), parse_budgets(budget), data, base, text_column, max_length, batch_size,
            distill_steps, fold, freeze_static, forms, overwrite,
        )  # fmt: skip
        deployed = run_export(request, opset, generate=wanted, adapters=adapters)
        print_result(deployed, request, as_json=as_json)


def _generated(*, generate: bool, cache: bool, static: bool, parts: bool) -> Generate:
    """What `export` is told of the four switches.

    Raises:
        typer.BadParameter: they exclude each other.
    """
    if cache and generate:
        raise typer.BadParameter("--generate is for gatefx, --cache for Optimum: choose one")
    if static and parts:
        raise typer.BadParameter("prompts in parts need caches that grow: choose one of --static and --parts")
    if (static or parts) and not generate:
        raise typer.BadParameter("--static and --parts say how a decoder is written: add --generate")
    if cache:
        return "optimum"
    return "static" if static else "parts" if parts else generate


@export_app.command("tensorrt")
def export_tensorrt(  # noqa: PLR0913, PLR0917  # every parameter is an option of the command
    model: Model,
    out: Out,
    method: Method = None,
    budget: BudgetText = None,
    data: Data = None,
    base: Base = None,
    text_column: TextColumn = None,
    max_length: MaxLength = 128,
    batch_size: BatchSize = 32,
    distill_steps: DistillSteps = 300,
    fold: Fold = None,
    freeze_static: FreezeStatic = False,
    forms: Forms = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Of weights and activations; inputs and outputs are fp32.")
    ] = "fp32",
    size: Annotated[
        list[str] | None,
        typer.Option(
            help='Sizes of an axis to build for, least:usual:most, as "batch=1:8:32"; repeat for others.',
            show_default="batch=1:8:32 and sequence=1:128:512, within the model's",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Build the engine once on this CPU by TensorRT for RTX, or try the graph in torch-tensorrt; or fail.",
        ),
    ] = False,
    through: Annotated[
        Literal["onnx", "torch-tensorrt"], typer.Option(help="What the engine is built by: its ONNX parser, or torch.")
    ] = "onnx",
    plugins: Annotated[
        bool,
        typer.Option("--plugins", help="Keep gated and routed operators for plugins; their kernels need Triton here."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a folder from which an engine is built where TensorRT and a GPU are; none is needed here."""
    with reported(debug):
        from .compiling import CompileRequest, parse_budgets, parse_sizes, run_export_tensorrt

        request = CompileRequest(
            model, out, tuple(method or ()), parse_budgets(budget), data, base, text_column, max_length, batch_size,
            distill_steps, fold, freeze_static, forms, overwrite,
        )  # fmt: skip
        way: Literal["onnx", "torch_tensorrt"] = "onnx" if through == "onnx" else "torch_tensorrt"
        deployed = run_export_tensorrt(
            request, precision=precision, sizes=parse_sizes(size), check=check, through=way, plugins=plugins
        )
        print_result(deployed, request, as_json=as_json)


@export_app.command("triton")
def export_triton(  # noqa: PLR0913, PLR0917  # every parameter is an option of the command
    folder: Annotated[Path, typer.Argument(help="An exported model.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Model repository to add it to.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the model there.", show_default="the folder's name")] = None,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Python back end: lengths and budgets may differ within a batch.")
    ] = False,
    mount: Annotated[
        str | None, typer.Option(help="Path of the repository on the server.", show_default="its path here")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the model in the server.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Examples that run together at most.")] = 8,
    wait_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a request waits for others.")] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each instance.")] = 1,
    debug: Debug = False,
) -> None:
    """Add an exported model to a model repository of NVIDIA's Triton Inference Server."""
    with reported(debug):
        from ..runtime.serving.options import ServeOptions
        from ..runtime.serving.triton_repository import Repository, write_repository
        from .console import output

        options = ServeOptions(replicas=instances, max_batch=max_batch, wait_ms=wait_ms, threads=threads)
        repository = Repository(out, name or folder.resolve().name, mount)
        written = write_repository(folder, repository, options, ragged=ragged)
        output().print(f"written: {written}", markup=False, soft_wrap=True)
