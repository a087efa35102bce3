"""The one error family of gatefx: every error a user can cause says what was given, what was expected, what to do."""

from __future__ import annotations


class GatefxError(Exception):
    """Base of every error gatefx raises on purpose.

    Args:
        problem: one sentence that says what is wrong.
        given: what the caller passed, as they would recognise it.
        expected: what would have been accepted.
        remedy: the next thing to type or change.
    """

    def __init__(self, problem: str, *, given: str = "", expected: str = "", remedy: str = "") -> None:
        self.problem, self.given, self.expected, self.remedy = problem, given, expected, remedy
        rows = [problem]
        rows += [f"  {label}: {text}" for label, text in self._labelled() if text]
        super().__init__("\n".join(rows))

    def _labelled(self) -> tuple[tuple[str, str], ...]:
        return (("given", self.given), ("expected", self.expected), ("what to do", self.remedy))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle through the keyword fields, so that worker processes hand the error on whole."""
        return _rebuild, (type(self), self.problem, self.given, self.expected, self.remedy)


def _rebuild(kind: type[GatefxError], problem: str, given: str, expected: str, remedy: str) -> GatefxError:
    return kind(problem, given=given, expected=expected, remedy=remedy)


class BudgetError(GatefxError):
    """A budget that is no number, not positive, or larger than what there is to keep."""


class MethodError(GatefxError):
    """An unknown method, or an option that the method does not have."""


class InputError(GatefxError):
    """Example inputs, calibration data or a call's inputs that do not fit the model."""


class CaptureError(GatefxError):
    """A model that cannot be captured as one graph with dynamic batch and sequence."""


class SiteError(GatefxError):
    """No adapter sites where sites were asked for, or a site that a pass cannot use."""


class UntrainedGateError(GatefxError):
    """Gates that were never trained, and no data to fit them on."""


class PassError(GatefxError):
    """A pass that broke its contract, an illegal graph, or passes in an order that cannot work."""


class ArtifactError(GatefxError):
    """An artifact folder that is missing, truncated, edited, or already there."""


class MissingDependencyError(GatefxError, ImportError):
    """An optional package that the requested feature needs is not installed."""

    def __init__(self, problem: str, *, given: str = "", expected: str = "", remedy: str = "") -> None:
        super().__init__(problem, given=given, expected=expected, remedy=remedy)


class ProviderError(GatefxError):
    """An execution provider that was asked for and is not what the session would run on."""


class UnansweredError(GatefxError):
    """A request that a server did not answer, through no fault of the request: it may be sent again."""


def missing_package(package: str, *, extra: str, feature: str) -> MissingDependencyError:
    """The error for an optional `package` that `feature` needs and that the extra `extra` installs."""
    return MissingDependencyError(
        f"{feature} needs the package {package!r}, which is not installed.",
        expected=f"an environment with {package}",
        remedy=f"pip install 'gatefx[{extra}]'",
    )
