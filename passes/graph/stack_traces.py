"""Tracing without the lines of Python behind each node, which nobody here reads: a node's module says where it is from.

torch walks the whole stack and reads its source files for every node that it traces, which takes a good part of the
time that a trace takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import config


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """What is traced inside has no `stack_trace`; torch's own option for it is afterwards what it was."""
    before = config.do_not_emit_stack_traces
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before
