"""`optimum-cli export gatefx`: what `gatefx export onnx` does, under Optimum's command.

Optimum reads every file of the namespace package `optimum.commands.register`; this one is installed there.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class GatefxExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # its base is only known where Optimum is
    """Fits or takes gates, hardens them and writes an ONNX folder."""

    COMMAND = CommandInfo(name="gatefx", help="Export a PEFT adapter or gates of gatefx as ONNX that decides.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Optimum's way to state options; they mean what they mean in `gatefx export onnx --help`."""
        parser.add_argument("-m", "--model", required=True, help="Folder of a PEFT LoRA adapter, or of trained gates.")
        parser.add_argument("--method", action="append", default=[], help="How adapters decide; several if repeated.")
        parser.add_argument("--budget", action="append", default=[], help="In the method's unit or a share.")
        parser.add_argument("--data", help="Unlabelled texts that calibrate the gates, and fit untrained ones.")
        parser.add_argument("--text-column", help="Column or field of --data that holds the texts.")
        parser.add_argument("--base", help="Base model, where the adapter names none or another place.")
        parser.add_argument("--distill-steps", help="Optimiser steps where gates have to be fitted.")
        parser.add_argument("--opset", help="Version of standard ONNX.")
        parser.add_argument("--cache", action="store_true", help="A decoder's one graph with its cache.")
        parser.add_argument("--overwrite", action="store_true", help="Replace what is there.")
        parser.add_argument("output", help="Folder to write.")

    def run(self) -> None:
        """Call the command of gatefx."""
        from gatefx.tools.cli import app

        app(["export", "onnx", *self._arguments()], prog_name="optimum-cli")

    def _arguments(self) -> list[str]:
        given = self.args
        single = {
            "--data": given.data,
            "--text-column": given.text_column,
            "--base": given.base,
            "--distill-steps": given.distill_steps,
            "--opset": given.opset,
        }
        options = [("--method", value) for value in given.method] + [("--budget", value) for value in given.budget]
        options += [(name, value) for name, value in single.items() if value is not None]
        switches = [name for name, on in (("--overwrite", given.overwrite), ("--cache", given.cache)) if on]
        return [given.model, given.output, *(part for option in options for part in option), *switches]


REGISTER_COMMANDS = [(GatefxExportCommand, ExportCommand)]
