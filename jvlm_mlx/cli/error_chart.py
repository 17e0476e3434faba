"""A plot of weight errors by layer."""

import errno
import os
from pathlib import Path

from ..conversion.verification import Verification
from ..conversion.weight_error import relative_error
from ..errors import ConversionError
from ..files import local_path
from .formatting import new_figure, save_figure, style_axes


def check_plot(file: Path) -> None:
    """Refuse a plot that could not be written, before anything is measured for it.

    Raises:
        RequestError: matplotlib is not installed.
        ConversionError: the file cannot be written, or is of no kind that matplotlib writes.
    """
    kinds = new_figure("plot").canvas.get_supported_filetypes()
    file = local_path(file, ConversionError)
    kind = file.suffix[1:].lower()
    if kind and kind not in kinds:
        raise ConversionError(f"{file} cannot be written: no plot is a {file.suffix}; give a .png")
    problem = None
    if file.is_dir():
        problem = errno.EISDIR
    elif not file.parent.is_dir():
        problem = errno.ENOTDIR if file.parent.exists() else errno.ENOENT
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        problem = errno.EACCES
    if problem is not None:
        raise ConversionError(f"{file} cannot be written: {os.strerror(problem)}")


def write_plot(verification: Verification, file: Path) -> None:
    """Write an image of the relative error by layer of tower and decoder, and of the rest.

    Raises:
        RequestError: matplotlib is not installed.
        ConversionError: the file cannot be written.
    """
    figure = new_figure("plot")
    layers, others = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    rest = []
    for module, error in verification.weight_errors().items():
        errors = [one for one in verification.weights if one.module == module]
        numbers = sorted({one.layer for one in errors if one.layer is not None})
        if numbers:
            by_layer = [
                100 * relative_error([one for one in errors if one.layer == number])
                for number in numbers
            ]
            layers.plot(numbers, by_layer, marker="o", label=module)
        else:
            rest.append((module, 100 * error))
    others.bar([module for module, _ in rest], [error for _, error in rest])
    others.tick_params(axis="x", rotation=45)
    style_axes(layers, xlabel="layer", ylabel="relative error of weights in %")
    style_axes(others)
    layers.set_ylim(bottom=0)
    figure.suptitle(f"{Path(verification.converted).name} against {verification.source}")
    save_figure(figure, local_path(file, ConversionError), ConversionError)
