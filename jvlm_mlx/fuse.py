"""Make one ordinary checkpoint of a model and its adapters.

Quantized layers become ordinary ones, unless the result is quantized again with -q.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from .checkpoint.adapters import CONFIG_NAME, AdapterConfig
from .checkpoint.hub import DEFAULT_REPOSITORY, locate_checkpoint
from .checkpoint.loader import check_template, load
from .checkpoint.saving import check_target
from .cli.arguments import add_quantization_arguments, quantization_options
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .config.dtypes import FLOAT_DTYPES
from .config.json_file import read_json
from .conversion.converter import convert
from .errors import CheckpointError, ConversionError, RequestError
from .files import atomic_folder, local_path
from .progress import Progress
from .training.fusing import write_fused


def fuse(
    path_or_hf_repo: str | Path | None = None,
    adapter_path: str | Path | None = None,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    recipe: str | None = None,
    show_progress: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint with the outputs of a model with adapters, but without adapters.

    Quantized layers become ordinary ones: what an adapter adds would be lost in rounding. With
    `quantize` the result is quantized again afterwards.

    Args:
        path_or_hf_repo: folder or repository of the model; None for the one that the adapter was
            trained for.
        adapter_path: folder of the adapters.
        output: the folder to write.
        revision: branch, tag or commit of a repository.
        dtype: `float32`, `float16` or `bfloat16`; None keeps what the model computes in.
        force: whether an existing checkpoint in `output` is replaced.
        quantize: whether to quantize the result; the options below are those of `convert`.
        q_bits: as for `convert`.
        q_group_size: as for `convert`.
        q_mode: as for `convert`.
        recipe: as for `convert`.
        show_progress: as for `load`.
        progress: called with the bytes of weights read.

    Returns:
        The folder that was written.

    Raises:
        JvlmError: with one line that says what is wrong with options, model, adapter or output.
    """
    if adapter_path is None or output is None:
        raise RequestError("fuse needs adapter_path, the adapter, and output, the folder to write")
    options: dict[str, Any] = {
        "q_bits": q_bits, "q_group_size": q_group_size, "q_mode": q_mode, "recipe": recipe,
    }  # fmt: skip
    for name, value in options.items():
        if value is not None and not quantize:
            raise RequestError(f"{name} is for quantization; add quantize (-q), too")
    target = local_path(output, ConversionError)
    adapter = local_path(adapter_path, CheckpointError)
    check_target(target, adapter=adapter, force=force)
    if path_or_hf_repo is None:
        path_or_hf_repo, revision = _base_model(adapter, revision)
    source = locate_checkpoint(path_or_hf_repo, revision=revision, show_progress=show_progress)
    check_target(target, source, adapter=adapter, force=force)
    model, processor = load(
        source, dtype=dtype, adapter_path=adapter, check_weights=True, progress=progress
    )
    check_template(source, processor)
    with atomic_folder(
        target,
        ConversionError,
        check=lambda: check_target(target, source, adapter=adapter, force=force),
        replace=force,
    ) as work:
        if not quantize:
            write_fused(source, work, model)
            return target
        # The conversion notes the name of its source.
        fused = work / "fused" / target.name
        fused.mkdir(parents=True)
        write_fused(source, fused, model)
        del model
        converted = work / "converted"
        convert(fused, converted, quantize=True, **options)
        for file in converted.iterdir():
            file.rename(work / file.name)
        converted.rmdir()
        shutil.rmtree(fused.parent)
    return target


def _base_model(adapter: Path, revision: str | None) -> tuple[str, str | None]:
    """Return the model that an adapter was trained for, and its revision, if it says so."""
    name = AdapterConfig.read(adapter).base_model
    if name is None:
        return DEFAULT_REPOSITORY, revision
    recorded = read_json(adapter / CONFIG_NAME).get("revision")
    return name, revision or (recorded if isinstance(recorded, str) else None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "--model", metavar="DIR_OR_REPO",
        help="folder of a checkpoint, or repository on the Hugging Face Hub (default: the one that"
        " the adapter was trained for)",
    )  # fmt: skip
    parser.add_argument("--revision", help="branch, tag or commit of a repository")
    parser.add_argument(
        "--adapter-path", type=Path, required=True, metavar="DIR", help="folder of the adapters"
    )
    parser.add_argument(
        "--output", "--save-path", type=Path, required=True, metavar="DIR",
        help="the folder to write",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, help="of the result; else as stored")
    add_quantization_arguments(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Fuse, and return the exit code."""
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        path = fuse(
            arguments.model,
            arguments.adapter_path,
            arguments.output,
            revision=arguments.revision,
            dtype=arguments.dtype,
            force=arguments.force,
            **quantization_options(arguments),
            show_progress=None if bars.shown else False,
            progress=bars.show,
        )
    print(f"written: {path}")
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("fuse"))
