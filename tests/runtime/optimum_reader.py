"""Run by an interpreter with optimum-onnx and without gatefx: open one exported folder and answer on one batch.

python optimum_reader.py FOLDER INPUTS.npz ANSWERS.npz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import (
    ORTModelForCausalLM,
    ORTModelForQuestionAnswering,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)

READERS = {
    "BertForSequenceClassification": ORTModelForSequenceClassification,
    "BertForTokenClassification": ORTModelForTokenClassification,
    "BertForQuestionAnswering": ORTModelForQuestionAnswering,
}


def main(folder: str, inputs: str, answers: str) -> None:
    """The class that the folder's architecture asks for, from `from_pretrained` as users call it."""
    architecture = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
    given = {name: torch.from_numpy(values) for name, values in np.load(inputs).items()}
    if architecture == "LlamaForCausalLM":
        found = {"tokens": generated(folder, given)}
    else:
        found = READERS[architecture].from_pretrained(folder)(**given)
    np.savez(answers, **{name: values.numpy() for name, values in found.items()})


def generated(folder: str, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Greedy, with a cache where the folder's graph has one."""
    cached = json.loads((Path(folder) / "gatefx.json").read_text())["kind"] == "optimum decoder"
    model = ORTModelForCausalLM.from_pretrained(folder, use_cache=cached)
    assert model.can_use_cache == cached
    return model.generate(**given, max_new_tokens=8, do_sample=False, use_cache=cached, eos_token_id=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
