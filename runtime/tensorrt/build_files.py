"""What a folder holds beside its ONNX model, so that its engine can be built where TensorRT and a GPU are.

profiles.json     {"profiles": [{input: {"min": […], "opt": […], "max": […]}}]}
build_engine.sh   the same build by trtexec
build_engine.py   by TensorRT's Python package, see `build_engine.py` here
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import build_engine
from .build_engine import ENGINE_FILE, MODEL_FILE, PROFILES_FILE

SHELL_SCRIPT, PYTHON_SCRIPT = "build_engine.sh", "build_engine.py"

Profile = Mapping[str, Mapping[str, Sequence[int]]]
"""Input with open axes → its "min", "opt" and "max" shape."""

_SHELL = """\
#!/bin/sh
# Builds {engine} where TensorRT's trtexec and the GPU that will run it are. Arguments are handed to trtexec.
set -eu
cd "$(dirname "$0")"
exec trtexec --onnx={model} --saveEngine={engine} --stronglyTyped --skipInference {shapes} "$@"
"""


def write_build_files(folder: Path, profile: Profile) -> None:
    """Write the three files; without open axes there is no profile and trtexec needs no shapes."""
    profiles = [profile] if profile else []
    (folder / PROFILES_FILE).write_text(json.dumps({"profiles": profiles}, indent=2) + "\n", encoding="utf-8")
    script = folder / SHELL_SCRIPT
    script.write_text(shell_script(profile), encoding="utf-8")
    script.chmod(0o755)
    shutil.copyfile(build_engine.__file__, folder / PYTHON_SCRIPT)


def shell_script(profile: Profile) -> str:
    """The text of `build_engine.sh`."""
    shapes = [f"--{kind}Shapes={_shapes(profile, kind)}" for kind in ("min", "opt", "max")] if profile else []
    return _SHELL.format(model=MODEL_FILE, engine=ENGINE_FILE, shapes=" ".join(map(shlex.quote, shapes)))


def _shapes(profile: Profile, kind: str) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, sizes[kind]))}" for name, sizes in profile.items())
