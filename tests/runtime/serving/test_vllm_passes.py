"""Passes named for vLLM's compilation: appended to what stands, known to its cache, refused where nothing runs them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

# Inductor imports setuptools with it, which takes the place of distutils: at once, and not in the midst of some test.
import torch.utils.cpp_extension  # noqa: F401
from torch import fx

from gatefx.errors import InputError
from gatefx.passes.contract import Pass
from gatefx.passes.lower.inductor import HOOK, InductorPass
from gatefx.passes.pipeline import Pipeline
from gatefx.passes.report import Outcome
from gatefx.passes.simplify.dead_code import EliminateDeadCode
from gatefx.runtime.serving.vllm_passes import append_passes

COMPILED, EAGER = 2, 0


@dataclass(frozen=True)
class Idle(Pass):
    """Does nothing, as its option says."""

    option: int

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        return Outcome()


def config(place: object, *, mode: int = COMPILED, backend: str = "inductor", standing: Any = None) -> Any:
    """What `append_passes` reads of vLLM's configuration."""
    options = {} if standing is None else {HOOK: standing}
    compilation = SimpleNamespace(mode=mode, backend=backend, inductor_compile_config=options)
    return SimpleNamespace(additional_config={"gatefx_passes": place}, compilation_config=compilation)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that holds passes."""
    module = ModuleType("named_passes")
    module.__dict__.update(FIRST=[Idle(1), EliminateDeadCode()], SECOND=[Idle(2)], NONE=[1], COUNT=3)
    monkeypatch.setitem(sys.modules, "named_passes", module)
    return module


@pytest.mark.usefixtures("named")
def test_passes_are_appended_once_and_replace_nothing() -> None:
    def other(graph: fx.Graph) -> None:
        """Somebody else's."""

    for standing in (None, other, [other]):
        asked = config("named_passes:FIRST", standing=standing)
        append_passes(asked)
        append_passes(asked)
        chain = asked.compilation_config.inductor_compile_config[HOOK]
        assert chain[:-1] == ([] if standing is None else [other])
        assert chain[-1] == InductorPass(Pipeline((Idle(1), EliminateDeadCode())))


@pytest.mark.usefixtures("named")
def test_other_options_have_other_digests() -> None:
    digests = []
    for name in ("FIRST", "SECOND", "FIRST"):
        asked = config(f"named_passes:{name}")
        append_passes(asked)
        digests.append(asked.compilation_config.inductor_compile_config[HOOK][-1].uuid())
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("place", ["named_passes:NONE", "named_passes:COUNT", "named_passes:GONE", "nowhere:X", "", 3])
@pytest.mark.usefixtures("named")
def test_what_names_no_passes_is_refused(place: object) -> None:
    asked = config(place)
    with pytest.raises(InputError, match="names no passes"):
        append_passes(asked)
    assert not asked.compilation_config.inductor_compile_config


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(("mode", "backend"), [(EAGER, "inductor"), (COMPILED, "eager")])
def test_a_model_that_inductor_does_not_compile_takes_no_passes(mode: int, backend: str) -> None:
    with pytest.raises(InputError, match="by Inductor, which is off") as caught:
        append_passes(config("named_passes:FIRST", mode=mode, backend=backend))
    assert "--enforce-eager" in str(caught.value)


def test_without_the_entry_nothing_is_appended() -> None:
    asked = config(None)
    for given in ({}, {"other": 1}, SimpleNamespace()):
        asked.additional_config = given
        append_passes(asked)
    assert not asked.compilation_config.inductor_compile_config
