"""The `gatefx` command. Options and help only: each command imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .cli_export import export_app
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

DEFAULT_DEMO = Path("gatefx-demo")

app = typer.Typer(
    help="Compiles adapters that decide: gated LoRA, fitted, hardened and lowered to engines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=HELP,
)
app.add_typer(export_app, name="export")


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
        print_result(run_optimize(request), request, as_json=as_json)


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
    chunk: Annotated[int | None, typer.Option(min=1, help="Read prompts so many tokens a call.")] = None,
    max_cache_len: Annotated[
        int | None, typer.Option(min=1, help="Rows of a cache of fixed size, prompt and padding included.")
    ] = None,
    evict_every: Annotated[
        int | None, typer.Option(min=1, help="Let masklora drop generated tokens too, so many at a time.")
    ] = None,
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
            folder, tuple(prompts or ()), max_tokens, parse_budgets(budget), temperature, top_k, top_p, seed, chunk,
            max_cache_len, evict_every, data, base, threads,
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


if __name__ == "__main__":
    main()
