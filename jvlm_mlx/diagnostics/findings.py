"""What a check found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    """What was found."""
    problem: str | None = None
    """What is wrong and what to do about it, in plain words; None if nothing is."""
