"""A captured graph that is called like the model it came from: names in, named tensors out, and loss given labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import InputError
from ..models.task_loss import LABEL_NAMES, TaskLoss
from .graph.signature import Signature, signature_of
from .report import Report


class Answer(dict[str, Tensor]):
    """A model's outputs: a dict in output order whose entries are attributes too, and indexable by position."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"the model returned {', '.join(self)}, no {name!r}")

    def __getitem__(self, key: str | int) -> Tensor:
        """An output by name, or by position as in transformers."""
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Tensor, ...]:
        """The outputs in order."""
        return tuple(self.values())


class _Forward:
    """`forward`: of a program, a call whose signature lists its inputs; of the class, one that lists the labels.

    The HF Trainer looks in both places.
    """

    def __get__(self, program: GraphProgram | None, owner: type | None = None) -> Callable[..., Answer]:
        return _forward if program is None else _NamedCall(program)


class GraphProgram(nn.Module):
    """A graph module with a signature, called by input name.

    Args:
        graph_module: a captured graph.
        loss: the task's loss.
        model_config: the transformers config of the model it came from, or None.
        report: what happened to the graph so far.
    """

    forward = _Forward()

    def __init__(self, graph_module: fx.GraphModule, *, loss: TaskLoss, model_config: Any, report: Report) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.loss = loss
        self.config = model_config
        self.report = report

    @property
    def signature(self) -> Signature:
        """Names, types and axes of inputs and outputs."""
        return signature_of(self.graph_module)

    def answer(self, inputs: Mapping[str, object]) -> Answer:
        """Run the graph, and the task's loss where labels are among the inputs.

        Raises:
            InputError: inputs that do not fit the signature.
        """
        labels = {k: v for k, v in inputs.items() if k in LABEL_NAMES and v is not None}
        outputs = Answer(self.run(self.arrange(inputs)))
        if not labels:
            return outputs
        return Answer({**self._losses(outputs, labels), **outputs})

    def run(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The graph's answers on its inputs in order."""
        answers: dict[str, Tensor] = self.graph_module(*tensors)
        return answers

    def arrange(self, inputs: Mapping[str, object]) -> list[Tensor]:
        """The graph's inputs in its order, labels left out.

        Raises:
            InputError: inputs that do not fit the signature.
        """
        return self.signature.arrange({k: v for k, v in inputs.items() if k not in LABEL_NAMES})

    def _losses(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": self.loss(outputs, labels)}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


class _NamedCall:
    """`forward` of a program: a callable whose signature lists the graph's inputs and the labels."""

    def __init__(self, program: GraphProgram) -> None:
        self._program = program

    @property
    def __signature__(self) -> inspect.Signature:
        names = (*self._program.signature.input_names, *LABEL_NAMES)
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature([inspect.Parameter(name, kind, default=None) for name in names])

    def __call__(self, *positional: Tensor, **inputs: object) -> Answer:
        names = self._program.signature.input_names
        if len(positional) > len(names):
            raise InputError(f"The model takes {len(names)} inputs.", given=f"{len(positional)} positional inputs")
        return self._program.answer({**dict(zip(names, positional, strict=False)), **inputs})


def _forward(
    program: GraphProgram,
    *positional: Tensor,
    labels: Tensor | None = None,
    start_positions: Tensor | None = None,
    end_positions: Tensor | None = None,
    **inputs: object,
) -> Answer:
    """Call a program by input name."""
    given = {"labels": labels, "start_positions": start_positions, "end_positions": end_positions}
    return _NamedCall(program)(*positional, **given, **inputs)
