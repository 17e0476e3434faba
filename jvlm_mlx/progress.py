"""Progress of long work: the one event type that all callbacks receive."""

from collections.abc import Callable
from typing import NamedTuple


class ProgressEvent(NamedTuple):
    """`done` of `total` of one stage. The first event of a stage may have `done` 0."""

    stage: str
    """`loading`, `tiles`, `prefill`, `checking`, `converting`, `comparing`, ..."""
    done: int
    total: int
    unit: str
    """What is counted, in the singular: `tile`, `token`, `request`; `B` for bytes."""
    note: str = ""
    """What else there is to show, such as a mean score so far."""


Progress = Callable[[ProgressEvent], None]
"""Called in the thread that does the work; what it raises ends the work."""


def no_progress(_: ProgressEvent) -> None:
    """Replace a callback that was not given."""
