"""The `gatefx` command. Options and help only: each command imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import __version__
from .errors_console import reported

if TYPE_CHECKING:
    from ..passes.deployed import DeployedModel
    from .compiling import CompileRequest

DEFAULT_DEMO = Path("gatefx-demo")
_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    help="Compiles adapters that decide: gated LoRA, fitted, hardened and lowered to engines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=_HELP,
)
export_app = typer.Typer(help="Write a model for an engine.", no_args_is_help=True, context_settings=_HELP)
app.add_typer(export_app, name="export")

Model = Annotated[
    Path,
    typer.Argument(help="Folder of trained gates (gated.save_pretrained), or a PEFT LoRA adapter.", show_default=False),
]
Out = Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)]
Method = Annotated[
    list[str] | None,
    typer.Option(
        help="How adapters decide: ccm, masklora, tspeft, gatera, weightlora weightlora+; several if repeated.",
        show_default="the gates' own, or ccm",
    ),
]
BudgetText = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help='In the method\'s unit or a share: "6", "0.4", "40%"; of several methods one each: "ccm=6"; '
        'masklora cuts by FLOPs too: "60%flops".',
        show_default="the gates' own, or the method's",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Unlabelled texts (.txt, .csv, .tsv, .jsonl): they calibrate the gates, and fit untrained ones."),
]
Base = Annotated[str | None, typer.Option(help="Base model, where the adapter names none or another place.")]
TextColumn = Annotated[str | None, typer.Option(help="Column or field of --data that holds the texts.")]
MaxLength = Annotated[int, typer.Option(min=3, help="Longest text in tokens; longer ones are cut.")]
BatchSize = Annotated[int, typer.Option(min=2, help="Texts per batch of --data.")]
DistillSteps = Annotated[int, typer.Option(min=1, help="Optimiser steps where gates have to be fitted.")]
Fold = Annotated[
    bool | None,
    typer.Option(
        "--fold/--no-fold", help="Merge ungated adapters into the weights.", show_default="where a gate is static"
    ),
]
FreezeStatic = Annotated[
    bool, typer.Option("--freeze-static", help="Freeze gates that never vary on --data (approximate).")
]
Forms = Annotated[
    Literal["gathered", "masked"] | None,
    typer.Option(help="Form of every routed site.", show_default="the cheaper one"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="gatefx")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"gatefx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del version  # its callback has printed it


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
    if cache and generate:
        raise typer.BadParameter("--generate is for gatefx, --cache for Optimum: choose one")
    with reported(debug):
        from .compiling import CompileRequest, parse_adapters, parse_budgets, run_export

        adapters = parse_adapters(adapter)
        request = CompileRequest(
            model, out, tuple(method or ()), parse_budgets(budget), data, base, text_column, max_length, batch_size,
            distill_steps, fold, freeze_static, forms, overwrite,
        )  # fmt: skip
        deployed = run_export(request, opset, generate="optimum" if cache else generate, adapters=adapters)
        _print_result(deployed, request, as_json=as_json)


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
        bool, typer.Option("--check", help="Build the engine once on this CPU by TensorRT for RTX, or fail.")
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
        deployed = run_export_tensorrt(request, precision=precision, sizes=parse_sizes(size), check=check)
        _print_result(deployed, request, as_json=as_json)


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


@app.command()
def optimize(  # noqa: PLR0913, PLR0917  # every parameter is an option of the command
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
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit or calibrate gates, report what compiling them gives, and write adapter and gates."""
    with reported(debug):
        from .compiling import CompileRequest, parse_budgets, run_optimize

        request = CompileRequest(
            model, out, tuple(method or ()), parse_budgets(budget), data, base, text_column, max_length, batch_size,
            distill_steps, fold, freeze_static, forms, overwrite,
        )  # fmt: skip
        _print_result(run_optimize(request), request, as_json=as_json)


@app.command()
def inspect(  # noqa: PLR0913, PLR0917  # every parameter is an option of the command
    folder: Annotated[Path, typer.Argument(help="An exported model, or saved gates.", show_default=False)],
    sparsity: Annotated[
        bool, typer.Option("--sparsity", help="Rank sites by the share of tokens that skip their update.")
    ] = False,
    text: Annotated[str | None, typer.Option(help="A sentence to run saved gates on, or to map with --html.")] = None,
    data: Annotated[Path | None, typer.Option(help="Texts (.txt, .csv, .tsv, .jsonl) to run saved gates on.")] = None,
    html: Annotated[Path | None, typer.Option(help="File for the heat map of the tokens of --text.")] = None,
    base: Base = None,
    text_column: TextColumn = None,
    max_length: MaxLength = 128,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every file of a folder and show its sites, ranks, passes and notes; of saved gates what they decide."""
    if html is not None and text is None:
        raise typer.BadParameter("--html needs --text")
    with reported(debug):
        from .inspecting import InspectRequest, run_inspect

        request = InspectRequest(folder, text, data, html, base, text_column, max_length)
        run_inspect(request, sparsity=sparsity, as_json=as_json)


@app.command()
def generate(  # noqa: PLR0913, PLR0917  # every parameter is an option of the command
    folder: Annotated[
        Path, typer.Argument(help="A decoder exported with --generate, or its saved gates.", show_default=False)
    ],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Texts to go on from; - reads standard input.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate behind each prompt at most.")] = 64,
    budget: BudgetText = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, more draws one.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many of the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest of this probability together.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    data: Data = None,
    base: Base = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of an exported model's engine.", show_default="the engine's choice")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on from prompts, token by token; the text of one prompt appears as it is generated."""
    with reported(debug):
        from .compiling import parse_budgets
        from .generating import GenerateRequest, run_generate

        request = GenerateRequest(
            folder, tuple(prompts or ()), max_tokens, parse_budgets(budget), temperature, top_k, top_p, seed, data,
            base, threads,
        )  # fmt: skip
        run_generate(request, as_json=as_json)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default=f"{DEFAULT_DEMO}, or the next free number")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A smaller encoder and fewer sentences: about a minute.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample, the new weights and the order of batches.")] = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Train, optimize, export and serve a real encoder on real sentences, and report what was measured."""
    with reported(debug):
        from .demo_settings import FAST, FULL, configure_threads

        configure_threads()
        from .demo import run_demo

        run_demo(FAST if fast else FULL, out, DEFAULT_DEMO, seed=seed, overwrite=overwrite)


@app.command()
def serve(  # noqa: PLR0913, PLR0917  # every parameter is an option of the command
    folder: Annotated[Path, typer.Argument(help="An exported model.", show_default=False)],
    replicas: Annotated[int, typer.Option(min=1, help="Processes that each hold the model.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Examples that run together at most.")] = 8,
    wait_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a request waits for others.")] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads, and CPUs, of each replica.")] = 1,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest request.", show_default="the model's own limit")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help='Another exported model for requests that name it, as "legal=FOLDER"; several if repeated.'),
    ] = None,
    drain: Annotated[float, typer.Option(min=0, help="Seconds that requests in flight have at shutdown.")] = 30.0,
    measure_every: Annotated[
        int, typer.Option(min=0, help="Measure ranks and tokens of one request in so many; 0: none.")
    ] = 0,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt, or ONNX Runtime's own name.")] = "cpu",
    host: Annotated[str, typer.Option(help="Address to listen on; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the HTTP door.")] = 8000,
    debug: Debug = False,
) -> None:
    """Answer requests over HTTP with Ray Serve, in batches, until it is interrupted."""
    with reported(debug):
        from ..runtime.serving.options import ServeOptions
        from .compiling import parse_adapters
        from .serving import run_serve

        options = ServeOptions(
            replicas, max_batch, wait_ms, threads=threads, longest=longest, drain_s=drain, measure_every=measure_every,
            provider=provider,
        )  # fmt: skip
        run_serve(folder, options, adapters=parse_adapters(adapter), host=host, port=port)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say which engines and kernels are active on this machine, and for each that is not, why."""
    with reported(debug):
        from .console import output
        from .doctor import examine, show_findings

        findings = examine()
        if as_json:
            typer.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
        else:
            show_findings(findings, output())


@app.command("build-native")
def build_native(debug: Debug = False) -> None:
    """Compile the native CPU kernels for ONNX Runtime and torch; needs cmake and a C++ compiler."""
    with reported(debug):
        from ..runtime.native.build import build_native
        from .console import output
        from .doctor import examine, show_findings

        for file in build_native():
            output().print(f"written: {file}", markup=False, soft_wrap=True)
        show_findings(examine(), output())


def _print_result(deployed: DeployedModel, request: CompileRequest, *, as_json: bool) -> None:
    from .compiling import result_of
    from .console import output
    from .inspect import show_report

    result = result_of(deployed, request)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    show_report(result, output())
    output().print(f"written: {request.out}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
