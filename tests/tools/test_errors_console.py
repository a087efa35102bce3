from __future__ import annotations

import pytest
import typer

from gatefx.errors import (
    ArtifactError,
    BudgetError,
    CaptureError,
    GatefxError,
    InputError,
    MissingDependencyError,
    PassError,
    SiteError,
    UntrainedGateError,
)
from gatefx.models.packaged_cache import PackagedDataError
from gatefx.tools.errors_console import reported


@pytest.mark.parametrize("kind", [ArtifactError, BudgetError, InputError, SiteError, UntrainedGateError])
def test_what_the_caller_can_change_exits_with_2(kind: type[GatefxError]) -> None:
    with pytest.raises(typer.Exit) as exit_, reported(debug=False):
        raise kind("wrong")
    assert exit_.value.exit_code == 2


@pytest.mark.parametrize("kind", [CaptureError, MissingDependencyError, PassError, PackagedDataError])
def test_what_failed_on_the_way_exits_with_1(kind: type[GatefxError]) -> None:
    with pytest.raises(typer.Exit) as exit_, reported(debug=False):
        raise kind("failed")
    assert exit_.value.exit_code == 1


def test_the_error_says_all_it_knows_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), reported(debug=False):
        raise InputError("No.", given="this", expected="that", remedy="type that")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: No.\n  given: this\n  expected: that\n  what to do: type that\n"


def test_an_unforeseen_error_points_at_debug_and_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for debug in (False, True):
        with pytest.raises(typer.Exit) as exit_, reported(debug):
            raise ZeroDivisionError("by zero")
        assert exit_.value.exit_code == 1
        err = capsys.readouterr().err
        assert "ZeroDivisionError: by zero" in err
        assert "--debug" in err
        assert ("Traceback" in err) is debug


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit_, reported(debug=False):
        raise KeyboardInterrupt
    assert exit_.value.exit_code == 130
    assert "interrupted" in capsys.readouterr().err
