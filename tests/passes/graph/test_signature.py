"""A call is checked against the signature before the graph runs, and the error says what the graph takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from gatefx.errors import InputError
from gatefx.models.tiny import tiny_inputs
from gatefx.passes.graph.signature import Signature, signature_of


@pytest.fixture
def signature(captured_family: Any) -> Signature:
    return signature_of(captured_family("bert")[1].graph_module)


def test_inputs_come_in_the_graph_s_order(signature: Signature) -> None:
    given = tiny_inputs("bert", batch=2, tokens=4)
    arranged = signature.arrange(dict(reversed(given.items())))

    assert [value is given[name] for value, name in zip(arranged, signature.input_names, strict=True)] == [True, True]


def test_inputs_that_are_none_count_as_left_out(signature: Signature) -> None:
    given = tiny_inputs("bert", batch=2, tokens=4)

    assert len(signature.arrange({**given, "token_type_ids": None})) == 2
    with pytest.raises(InputError, match="misses attention_mask"):
        signature.arrange({**given, "attention_mask": None})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_type_ids": torch.zeros(2, 4)}, "has no input token_type_ids"),
        ({"attention_mask": None}, "misses attention_mask"),
        ({"input_ids": [[1, 2]]}, "input_ids is no tensor"),
        ({"input_ids": torch.zeros(2, 4, 1, dtype=torch.int64)}, "input_ids has another rank"),
        ({"input_ids": torch.zeros(2, 5, dtype=torch.int64)}, "axis 1 has 4 entries but input_ids axis 1, the same"),
        ({"attention_mask": torch.zeros(3, 4, dtype=torch.int64)}, "axis 0 has 3 entries but input_ids axis 0"),
        (
            {name: torch.zeros(0, 4, dtype=torch.int64) for name in ("input_ids", "attention_mask")},
            "axis 0 is empty",
        ),
        (
            {name: torch.zeros(2, 129, dtype=torch.int64) for name in ("input_ids", "attention_mask")},
            "has 129 entries, the model takes at most 128",
        ),
    ],
)
def test_calls_that_do_not_fit_say_what_was_given_and_expected(
    signature: Signature, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        signature.arrange({**tiny_inputs("bert", batch=2, tokens=4), **change})

    text = str(caught.value)
    assert "given:" in text
    assert "expected:" in text
    assert "int64[" in text


def test_no_input_at_all_is_refused(signature: Signature) -> None:
    with pytest.raises(InputError, match=r"misses input_ids, attention_mask(.|\n)*given: no inputs"):
        signature.arrange({})


def test_token_ids_that_are_floats_are_refused(signature: Signature) -> None:
    given = tiny_inputs("bert", batch=2, tokens=4)

    with pytest.raises(InputError, match=r"input_ids has another type(.|\n)*float32(.|\n)*int64"):
        signature.arrange({**given, "input_ids": given["input_ids"].float()})


def test_a_fixed_axis_takes_its_size_only(captured_family: Any) -> None:
    signature = signature_of(captured_family("vit")[1].graph_module)

    assert str(signature.inputs[0]).endswith("3, 32, 32]")
    with pytest.raises(InputError, match="axis 2 has 64 entries, the graph was captured with 32"):
        signature.arrange({"pixel_values": torch.zeros(2, 3, 64, 64)})


def test_a_decoder_has_a_length_of_its_own(captured_family: Any) -> None:
    signature = signature_of(captured_family("t5")[1].graph_module)
    axes = {spec.name: [axis.symbol for axis in spec.axes] for spec in signature.inputs}

    assert axes["input_ids"] == axes["attention_mask"]
    assert axes["decoder_input_ids"][0] == axes["input_ids"][0]
    assert axes["decoder_input_ids"][1] != axes["input_ids"][1]
    assert signature.outputs == ("logits", "encoder_last_hidden_state")


def test_a_graph_without_a_signature_is_refused(capture_plain: Callable[..., fx.GraphModule]) -> None:
    graph = capture_plain()
    graph.meta["signature"] = None

    with pytest.raises(InputError, match=r"no signature(.|\n)*gatefx\.prepare"):
        signature_of(graph)
