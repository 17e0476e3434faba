"""What the checks find: findings with a verdict, and how an exception becomes one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import explained

SLOW = 0.75
"""Fraction of what is possible below which a speed gets a suspect."""
_MAX_ERROR = 200


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    """What was found."""
    problem: str | None = None
    """What is wrong and what to do about it, in plain words; None if nothing is."""
    suspect: str | None = None
    """What makes things slower than they could be; None if nothing does."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Figures behind `value`, for programs."""

    @property
    def verdict(self) -> str:
        """`problem`, `slow` or `ok`."""
        return "problem" if self.problem else "slow" if self.suspect else "ok"

    def as_json(self) -> dict[str, Any]:
        """Return everything there is to say, for one JSON object."""
        texts = {"name": self.name, "value": self.value, "verdict": self.verdict}
        reasons = {"problem": self.problem, "suspect": self.suspect}
        return {**texts, **{name: text for name, text in reasons.items() if text}, **self.data}


class Skipped(Exception):  # noqa: N818 - a finding, not an error
    """Raised by a check that is not worth doing here; its text is what was found."""


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; an exception ends it as one more finding.

    Args:
        name: of that finding.
        check: yields findings.
    """
    try:
        yield from check()
    except Skipped as reason:
        yield Finding(name, str(reason))
    except Exception as error:
        yield failure(name, error)


def failure(name: str, error: Exception) -> Finding:
    """Return the finding that an exception is, of MLX's for instance."""
    text = " ".join(str(explained(error)).split()) or type(error).__name__
    text = text.replace(str(Path.home()), "~")  # a report is sent to others
    return Finding(name, "failed", f"this check ended with an error: {text[:_MAX_ERROR]}")


def counted(findings: Iterable[Finding]) -> str:
    """Return the last line of a report: how many problems there are, and how much is slow."""
    verdicts = [finding.verdict for finding in findings]
    problems, slow = verdicts.count("problem"), verdicts.count("slow")
    parts = [f"{problems} problem{'s' * (problems != 1)} found"] if problems else []
    parts += [f"{slow} finding{'s' * (slow != 1)} slower than possible"] if slow else []
    return ", ".join(parts) or "all is well"


def time_text(seconds: float) -> str:
    """Return a time with three digits: `2.4 us`, `1.52 ms`, `3.1 s`."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
