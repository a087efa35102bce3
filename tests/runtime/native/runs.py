"""Models of one node in ONNX Runtime, with the native library or without, and called by several threads at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from gatefx.runtime.native.places import FILES


def opened(model: onnx.ModelProto, folder: Path | None, threads: int) -> Any:
    """A session on `model`, with the library in `folder`; None runs no native kernel."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if folder is not None:
        options.register_custom_ops_library(str(folder / FILES["onnxruntime"]))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(made: Any, feed: dict[str, np.ndarray]) -> torch.Tensor:
    """What the node says of `feed`, of which a session takes what it has inputs for."""
    taken = {node.name: feed[node.name] for node in made.get_inputs()}
    return torch.from_numpy(made.run(None, taken)[0])


def all_equal_from_four_callers(made: Any, feeds: Sequence[dict[str, np.ndarray]]) -> bool:
    """Whether 1,000 runs of one session by four threads say, bit for bit, what one thread's do."""
    expected = [run(made, feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(lambda turn: (turn % 4, run(made, feeds[turn % 4])), range(1000)))
    return all(torch.equal(said, expected[which]) for which, said in turns)
