"""A plot of weight errors by layer."""

from pathlib import Path

from ..errors import ConversionError, RequestError
from .compare import relative_error
from .verify import Verification


def write_plot(verification: Verification, file: Path) -> None:
    """Write a picture of the relative error by layer of tower and decoder, and of the rest.

    Raises:
        RequestError: matplotlib is not installed.
        ConversionError: the file cannot be written.
    """
    try:
        # Not pyplot, which would choose a window system and keep a global state.
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError(
            "a plot needs matplotlib: pip install 'jvlm-mlx[plot]', or leave out --plot"
        ) from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    layers, others = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    rest = []
    for part, error in verification.weight_errors().items():
        errors = [one for one in verification.weights if one.part == part]
        numbers = sorted({one.layer for one in errors if one.layer is not None})
        if numbers:
            by_layer = [
                100 * relative_error([one for one in errors if one.layer == number])
                for number in numbers
            ]
            layers.plot(numbers, by_layer, marker="o", label=part)
        else:
            rest.append((part, 100 * error))
    layers.set(xlabel="layer", ylabel="relative error of weights in %")
    layers.legend()
    others.bar([part for part, _ in rest], [error for _, error in rest])
    others.tick_params(axis="x", rotation=45)
    layers.set_ylim(bottom=0)
    figure.suptitle(f"{Path(verification.converted).name} against {verification.source}")
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file} cannot be written: {error}") from error
