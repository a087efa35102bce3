"""What a folder holds beside its ONNX model, so that its engine can be built where TensorRT and a GPU are.

profiles.json     {"profiles": [{input: {"min": […], "opt": […], "max": […]}}]}
build_engine.sh   the same build by trtexec
build_engine.py   by TensorRT's Python package, see `build_engine.py` here; of a model with plugins it registers them

Where it is built through torch-tensorrt, the folder holds program.pt2 instead of the ONNX model, profiles.json, and a
build_engine.py that calls `torch_tensorrt.py` here.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..artifact import Artifact
from . import build_engine
from .build_engine import ENGINE_FILE, MODEL_FILE, PROFILES_FILE

SHELL_SCRIPT, PYTHON_SCRIPT = "build_engine.sh", "build_engine.py"
PROGRAM_FILE = "program.pt2"

Profile = Mapping[str, Mapping[str, Sequence[int]]]
"""Input with open axes → its "min", "opt" and "max" shape."""

_SHELL = """\
#!/bin/sh
# Builds {engine} where TensorRT's trtexec and the GPU that will run it are. Arguments are handed to trtexec.
set -eu
cd "$(dirname "$0")"
{plugins}exec trtexec --onnx={model} --saveEngine={engine} --stronglyTyped --skipInference {shapes} "$@"
"""

_PLUGINS = """\
# trtexec does not see plugins of Python's: it needs them as a library.
: "${GATEFX_PLUGIN_LIBRARY:?name the library that plugins/source builds, or run python build_engine.py}"
export GATEFX_KERNELS="$PWD/plugins"
set -- "--dynamicPlugins=$GATEFX_PLUGIN_LIBRARY" "$@"
"""
"""Before trtexec is called."""

_TORCH_SCRIPT = """\
\"\"\"Builds {engine} where torch-tensorrt, gatefx and the GPU that will run it are: python {script}\"\"\"

from pathlib import Path

from gatefx.runtime.tensorrt.torch_tensorrt import main

raise SystemExit(main(Path(__file__).resolve().parent))
"""


def write_build_files(folder: Path, profile: Profile, *, plugins: bool = False) -> None:
    """Write the three files; without open axes there is no profile and trtexec needs no shapes.

    Args:
        plugins: whether the model calls plugins, see `plugin_files.py`.
    """
    _write_profile(folder, profile)
    script = folder / SHELL_SCRIPT
    script.write_text(shell_script(profile, plugins=plugins), encoding="utf-8")
    script.chmod(0o755)
    shutil.copyfile(build_engine.__file__, folder / PYTHON_SCRIPT)


def write_torch_build_files(folder: Path, profile: Profile) -> None:
    """Write profile and script of a folder that is built through torch-tensorrt."""
    _write_profile(folder, profile)
    text = _TORCH_SCRIPT.format(engine=ENGINE_FILE, script=PYTHON_SCRIPT)
    (folder / PYTHON_SCRIPT).write_text(text, encoding="utf-8")


def _write_profile(folder: Path, profile: Profile) -> None:
    profiles = [profile] if profile else []
    (folder / PROFILES_FILE).write_text(json.dumps({"profiles": profiles}, indent=2) + "\n", encoding="utf-8")


def read_profile(artifact: Artifact) -> Profile:
    """The shapes that the artifact's engine is built for; none where every size is fixed."""
    profiles = json.loads(artifact.file(PROFILES_FILE).read_text(encoding="utf-8"))["profiles"]
    found: Profile = profiles[0] if profiles else {}
    return found


def shell_script(profile: Profile, *, plugins: bool = False) -> str:
    """The text of `build_engine.sh`."""
    shapes = [f"--{kind}Shapes={_shapes(profile, kind)}" for kind in ("min", "opt", "max")] if profile else []
    before = _PLUGINS if plugins else ""
    return _SHELL.format(
        plugins=before, model=MODEL_FILE, engine=ENGINE_FILE, shapes=" ".join(map(shlex.quote, shapes))
    )


def _shapes(profile: Profile, kind: str) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, sizes[kind]))}" for name, sizes in profile.items())
