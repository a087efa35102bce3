"""The configuration is one that Triton's own protobuf reads, and says what the model takes."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.served_model import ServedModel, served_model
from gatefx.runtime.serving.triton_config import OPTIONS_KEY, config_text
from gatefx.runtime.sessions.protocol import TensorSpec

needs_protobuf = pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None,
    reason="tritonclient is not installed here: no config.pbtxt is parsed (make serve-checks)",
)
OPTIONS = ServeOptions(replicas=3, max_batch=16, wait_ms=2.5, threads=2, queued=99)


@pytest.fixture(scope="module")
def model(session: Any, served_folder: Path) -> ServedModel:
    return served_model(str(served_folder), session, OPTIONS)


def read(text: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


@needs_protobuf
def test_the_graph_alone_batches_requests_of_one_length(model: ServedModel) -> None:
    config = read(config_text(model, OPTIONS, name="reviews", ragged=False, library="/models/reviews/kernels.so"))
    assert (config.name, config.backend, config.max_batch_size) == ("reviews", "onnxruntime", 16)
    assert [(i.name, list(i.dims), i.allow_ragged_batch) for i in config.input] == [
        ("input_ids", [-1], False),
        ("attention_mask", [-1], False),
    ]
    types = {tensor.name: tensor.data_type for tensor in (*config.input, *config.output)}
    assert (
        types["logits"]
        == config.output[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name["TYPE_FP32"].number
    )
    assert list(config.output[0].dims) == [2]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 99
    assert [(group.count, group.kind) for group in config.instance_group] == [(3, config.instance_group[0].KIND_CPU)]
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert list(config.model_operations.op_library_filename) == ["/models/reviews/kernels.so"]


@needs_protobuf
def test_ragged_requests_have_budgets_that_may_be_left_out(model: ServedModel) -> None:
    config = read(config_text(model, OPTIONS, name="reviews", ragged=True))
    assert config.backend == "python"
    assert [(i.name, i.allow_ragged_batch, i.optional) for i in config.input] == [
        ("input_ids", True, False),
        ("attention_mask", True, False),
        ("budget_ccm", False, True),
    ]
    again = ServeOptions(**json.loads(config.parameters[OPTIONS_KEY].string_value))
    assert (again.threads, again.max_batch, again.width) == (2, 16, OPTIONS.width)
    assert not config.model_operations.op_library_filename


@needs_protobuf
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bool", "int8", "int64", "uint8", "uint64"])
@pytest.mark.parametrize("shape", [("batch",), ("batch", "sequence"), ("batch", "sequence", 7), ("batch", None)])
def test_every_type_and_shape_is_read_back(model: ServedModel, dtype: str, shape: tuple[Any, ...]) -> None:
    odd = replace(model, outputs=(TensorSpec('an "odd" \\ näme', np.dtype(dtype), shape),))
    output = read(config_text(odd, OPTIONS, name="m", ragged=False)).output[0]
    assert output.name == 'an "odd" \\ näme'
    assert list(output.dims) == ([-1 if not isinstance(size, int) else size for size in shape[1:]] or [1])
    assert output.HasField("reshape") == (shape == ("batch",))


@needs_protobuf
@pytest.mark.parametrize(
    ("provider", "kind", "accelerators"),
    [
        ("cpu", "KIND_CPU", []),
        ("CPUExecutionProvider", "KIND_CPU", []),
        ("cuda", "KIND_GPU", []),
        ("CUDAExecutionProvider", "KIND_GPU", []),
        ("tensorrt", "KIND_GPU", ["tensorrt"]),
        ("TensorrtExecutionProvider", "KIND_GPU", ["tensorrt"]),
    ],
)
def test_the_provider_says_where_instances_run(
    model: ServedModel, provider: str, kind: str, accelerators: list[str]
) -> None:
    asked = replace(OPTIONS, provider=provider)
    alone, ragged = (read(config_text(model, asked, name="m", ragged=ragged)) for ragged in (False, True))
    for config in (alone, ragged):
        (group,) = config.instance_group
        assert group.kind == group.Kind.Value(kind)
    found = alone.optimization.execution_accelerators.gpu_execution_accelerator
    assert [accelerator.name for accelerator in found] == accelerators
    assert not ragged.HasField("optimization")


def test_without_a_library_none_is_named(model: ServedModel) -> None:
    text = config_text(model, replace(OPTIONS, provider="cuda"), name="m", ragged=False)
    assert "model_operations" not in text
    assert re.search(r"kind: KIND_GPU", text)
    assert text.count("data_type: TYPE_INT64") == 2
