"""An empty figure of matplotlib, which is an optional extra."""

from typing import Any

from ..errors import RequestError


def new_figure(what: str) -> Any:
    """Return an empty figure.

    Args:
        what: is drawn; also the flag that asks for it.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        # Not pyplot, which would choose a window system and keep a global state.
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError(
            f"a {what} needs matplotlib: pip install 'jvlm-mlx[plot]', or leave out --{what}"
        ) from None
    return Figure(figsize=(8, 4.5), layout="constrained")
