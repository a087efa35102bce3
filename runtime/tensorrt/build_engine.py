"""Builds the engine of a folder: `python build_engine.py`, where TensorRT and the GPU that will run it are.

Reads model.onnx, the weights beside it and profiles.json, and registers the plugins of a folder that has some; writes
model.engine, which needs none of them to run. A copy of this file lies in every folder that gatefx.export writes for
TensorRT, so it imports nothing of gatefx, whose own trial builds call `build` too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL_FILE, PROFILES_FILE, ENGINE_FILE = "model.onnx", "profiles.json", "model.engine"
PLUGINS_FOLDER = "plugins"


class RefusedError(Exception):
    """What TensorRT says against a graph, one line for each thing."""


def build(trt: Any, logger: Any, folder: Path, plugins: int = 0) -> bytes:
    """The engine of the model in `folder`.

    Args:
        trt: the module tensorrt, or tensorrt_rtx; logger: one of its loggers, which hears why a build fails.
        plugins: how many nodes must become plugins; the parser says nothing of those that do not.

    Raises:
        RefusedError: the graph has an operator, a type or a size that TensorRT does not take, or misses a plugin.
    """
    builder = trt.Builder(logger)
    # TensorRT 11 types every network strongly; TensorRT 10 has to be told.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(folder / MODEL_FILE)):
        raise RefusedError("\n".join(_parse_errors(parser)))
    if plugins:
        _check_plugins(trt, network, plugins)
    config = builder.create_builder_config()
    for shapes in json.loads((folder / PROFILES_FILE).read_text(encoding="utf-8"))["profiles"]:
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.items():
            profile.set_shape(name, sizes["min"], sizes["opt"], sizes["max"])
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RefusedError("the build failed; the log above says why")
    return bytes(engine)


def _check_plugins(trt: Any, network: Any, expected: int) -> None:
    kinds = [network.get_layer(place).type for place in range(network.num_layers)]
    if (found := kinds.count(trt.LayerType.PLUGIN_V3)) != expected:
        raise RefusedError(f"{expected} nodes have plugins, and {found} of them became one")


def register_plugins(folder: Path) -> int:
    """Register the plugins of `folder`, if it has any, with the TensorRT of this process.

    Returns:
        How many nodes of its model must become plugins.

    Raises:
        RefusedError: they cannot be registered.
    """
    if not (folder / PLUGINS_FOLDER).is_dir():
        return 0
    sys.path.insert(0, str(folder))
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a folder with files of nobody's is not opened
    try:
        register = importlib.import_module(f"{PLUGINS_FOLDER}.register")
        return int(register.register_plugins(folder / PLUGINS_FOLDER))
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise RefusedError(f"the plugins of {folder} cannot be registered: {error}") from error
    finally:
        sys.dont_write_bytecode = wrote


def _parse_errors(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        yield f"{error.node_operator()} {error.node_name()!r}: {error.desc()}"


def write_whole(output: Path, engine: bytes) -> None:
    """Write `output`, whole or not at all."""
    half_written = output.with_name(output.name + ".writing")
    half_written.write_bytes(engine)
    os.replace(half_written, output)


def main() -> int:
    """Build the engine of the folder that this file lies in."""
    here = Path(__file__).resolve().parent
    options = argparse.ArgumentParser(description="Build a TensorRT engine for this machine's GPU.")
    options.add_argument("--output", type=Path, default=here / ENGINE_FILE, help="file to write (%(default)s)")
    output: Path = options.parse_args().output
    try:
        import tensorrt
    except ImportError as error:
        print(f"TensorRT's Python package is missing ({error}): pip install tensorrt", file=sys.stderr)
        return 1
    try:
        plugins = register_plugins(here)
        engine = build(tensorrt, tensorrt.Logger(tensorrt.Logger.WARNING), here, plugins)
    except RefusedError as refusal:
        print(f"TensorRT {tensorrt.__version__} does not take this model:\n{refusal}", file=sys.stderr)
        return 1
    write_whole(output, engine)
    print(f"written: {output}, {len(engine)} bytes, by TensorRT {tensorrt.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
