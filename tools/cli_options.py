"""Arguments and options that several commands share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of every app."""

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
