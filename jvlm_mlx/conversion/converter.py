"""`convert`: from a checkpoint of any layout to this project's own, as small as asked for."""

import dataclasses
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint.hub import DEMO, check_upload, locate_checkpoint, origin, upload
from ..checkpoint.loader import check_template, load_processor, read_config
from ..checkpoint.model_card import CARD, card_metadata
from ..checkpoint.names import module_of
from ..checkpoint.reader import CheckpointFiles, belongs_to, row_blocks
from ..checkpoint.saving import (
    CONFIG,
    Record,
    check_target,
    config_text,
    copy_files,
    read_record,
    updated_config,
)
from ..checkpoint.structure import is_decoder_bias
from ..checkpoint.weights import Checkpoint, as_bytes
from ..checkpoint.writer import MAX_SHARD_BYTES, ShardWriter, split_into_shards
from ..config.json_file import read_json
from ..errors import ConversionError, RequestError
from ..files import atomic_folder, check_free_space, local_path
from ..progress import Progress, ProgressEvent, no_progress
from ..version import __version__
from .conversion_card import conversion_card
from .plan import Plan, plan_conversion
from .recipes import ConversionOptions, from_quant_predicate
from .transform import Squares, relative_error, transform_rows

logger = logging.getLogger(__name__)

MAX_BLOCK_VALUES = 2**21
"""Numbers that are worked on at a time: larger tensors are split by rows. To quantize to 4-bit
floating point on the CPU, MLX holds more than 64 bytes for each."""
_SPARE_BYTES = 64 * 2**20  # tokenizer, config and what a file system needs for itself


@dataclass(frozen=True)
class Conversion:
    """What was done, or would be."""

    path: Path | None
    """Folder of the new checkpoint; None for a dry run."""
    plan: Plan
    record: Record
    weight_error: Mapping[str, float]
    """Relative rounding error of this conversion by module; empty for a dry run."""


def convert(
    hf_path: str | Path,
    mlx_path: str | Path | None = None,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    recipe: str | None = None,
    quant_predicate: str | None = None,
    dequantize: bool = False,
    upload_repo: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    show_progress: bool | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint: the released one, the existing MLX conversion, or this project's own.

    Weights are read, converted and written a few megabytes at a time, and looked through for NaN
    and infinite values. The new folder appears when it is complete; until then, and after any
    error, there is what was there before.

    Args:
        hf_path: a local folder, or a repository of the Hugging Face Hub.
        mlx_path: the folder to write; may be None for a dry run.
        revision: branch, tag or commit of a repository.
        dtype: `float32`, `float16` or `bfloat16` for what is not quantized; None keeps it.
        quantize: whether to quantize.
        q_bits: 2, 3, 4, 5, 6 or 8; None for 4, or for those of the mode.
        q_group_size: 32, 64 or 128; None for 64, or for that of the mode.
        q_mode: `affine` (also for None), `mxfp4`, `mxfp8` or `nvfp4`.
        recipe: `uniform` (also for None), `mixed` or `language-only`.
        quant_predicate: mlx-lm's name of a recipe and its bits, such as `mixed_4_6`.
        dequantize: whether what is quantized in the source becomes ordinary weights first.
        upload_repo: repository of the Hub to upload the result to, created if need be.
        dry_run: whether to plan only: nothing is written, and weights are not looked through.
        force: whether an existing checkpoint at `mlx_path` is replaced.
        max_shard_bytes: largest weight file.
        show_progress: whether downloads show bars on standard error; None: if it is a terminal.
        progress: called with the stage `converting`, in bytes.

    Raises:
        JvlmError: with one line that says what is wrong with options, source or target.
    """
    if quant_predicate is not None:
        if (recipe, q_bits) != (None, None):
            raise RequestError("quant_predicate gives recipe and q_bits: leave those two out")
        recipe, q_bits = from_quant_predicate(quant_predicate)
    options = ConversionOptions(
        dtype=dtype,
        quantize=quantize,
        q_bits=q_bits,
        q_group_size=q_group_size,
        q_mode=q_mode,
        recipe=recipe,
        dequantize=dequantize,
    )
    if upload_repo is not None:
        check_upload(upload_repo)
    target = None if dry_run else _target(mlx_path, force=force)
    folder = locate_checkpoint(hf_path, revision=revision, show_progress=show_progress)
    if target is not None:
        check_target(target, folder, force=force)
    config_json = read_json(folder / CONFIG)
    config = read_config(folder)
    source = Checkpoint.open(CheckpointFiles(folder), config.model)
    check_template(folder, load_processor(folder, config))
    earlier = read_record(config_json)
    plan = plan_conversion(
        source,
        options,
        unpadded_mlp_size=earlier.unpadded_mlp_size if earlier else None,
        zero_decoder_biases=_has_zero_decoder_biases(source),
    )
    if plan.unfit:
        logger.warning(
            "%d layers are not quantized, since their inputs are no multiple of the group: %s",
            len(plan.unfit),
            # Layers of one kind are named once.
            ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", path) for path in plan.unfit)),
        )
    if earlier is not None and plan.unchanged:
        record = earlier
    else:
        record = _make_record(str(hf_path), folder, options, plan, earlier)
    if target is None:
        return Conversion(None, plan, record, {})
    check_free_space(target, sum(plan.output_bytes.values()) + _SPARE_BYTES, ConversionError)

    def check() -> None:
        check_target(target, folder, force=force)

    with atomic_folder(target, ConversionError, check=check, replace=force) as work:
        errors = _write_weights(
            source,
            plan,
            work,
            max_shard_bytes,
            float16=dtype == "float16",
            progress=progress or no_progress,
        )
        record = dataclasses.replace(record, weight_error=record.weight_error | errors)
        copy_files(folder, work)
        card = folder / CARD
        if plan.unchanged and card.is_file() and belongs_to(folder, card):
            shutil.copyfile(card, work / CARD)
        else:
            text = conversion_card(plan, record, card_metadata(folder))
            (work / CARD).write_text(text, encoding="utf-8")
        new_config = updated_config(
            config_json,
            source.config,
            dtype=plan.dtype,
            mlp_size=plan.mlp_size,
            decoder_biases=plan.decoder_biases,
            quantization=plan.quantization,
            record=record,
        )
        # Comes last: a folder without it is no checkpoint.
        (work / CONFIG).write_text(config_text(new_config), encoding="utf-8")
    if upload_repo is not None:
        upload(target, upload_repo)
    return Conversion(target, plan, record, errors)


def _write_weights(
    source: Checkpoint,
    plan: Plan,
    folder: Path,
    max_shard_bytes: int,
    *,
    float16: bool,
    progress: Progress,
) -> dict[str, float]:
    """Write all tensors into a folder, and return the relative rounding error of each module.

    Raises:
        OSError: the disk is full.
        CheckpointError: a weight is NaN or infinite, or the source cannot be read any more.
    """
    check = source.value_check(float16=float16)
    squares: dict[str, list[Squares]] = {}
    done, total = 0, sum(plan.output_bytes.values())
    shards = split_into_shards([one.outputs for one in plan.parameters], max_shard_bytes)
    with ShardWriter(folder, shards) as writer:
        for parameter in plan.parameters:
            for start, stop in row_blocks(parameter.shape, MAX_BLOCK_VALUES):
                rows, errors = transform_rows(source, parameter, start, stop, check)
                for name, array in rows.items():
                    writer.write(name, start, as_bytes(array))
                    done += array.nbytes
                if errors[0]:
                    module = module_of(parameter.path) or parameter.path
                    squares.setdefault(module, []).append(errors)
                progress(ProgressEvent("converting", done, total, "B"))
        writer.finish()
    mx.clear_cache()
    return {module: float(f"{relative_error(one):.3g}") for module, one in sorted(squares.items())}


def _target(mlx_path: str | Path | None, *, force: bool) -> Path:
    if mlx_path is None:
        raise RequestError("mlx_path is missing: the folder to write")
    target = local_path(mlx_path, ConversionError)
    # Known before a download of gigabytes starts.
    check_target(target, force=force)
    return target


def _has_zero_decoder_biases(source: Checkpoint) -> bool:
    """Return whether the decoder has biases that all are zero: as good as none.

    Loading has dropped them already if the config says that there are none.
    """
    if not source.config.decoder.block.attention.has_projection_bias:
        return False
    biases = {path: shape for path, shape in source.shapes.items() if is_decoder_bias(path)}
    return not any(
        mx.any(source.rows(path, 0, shape[0]) != 0).item() for path, shape in biases.items()
    )


def _make_record(
    hf_path: str, folder: Path, options: ConversionOptions, plan: Plan, earlier: Record | None
) -> Record:
    is_local = hf_path == DEMO or Path(hf_path).expanduser().is_dir()
    name, revision = origin(folder) if is_local else (hf_path, folder.name)
    source_bytes = sum(plan.source_bytes.values())
    recipe = options.recipe_name if options.quantize else None
    if earlier is not None:
        # The first source, not the conversion in between, is what weights come from.
        name, revision, source_bytes = earlier.source, earlier.revision, earlier.source_bytes
        if not options.quantize and not options.dequantize:
            recipe = earlier.recipe
    return Record(
        version=__version__,
        source=name,
        revision=revision,
        source_bytes=source_bytes,
        recipe=recipe,
        unpadded_mlp_size=plan.unpadded_mlp_size,
        weight_error=dict(earlier.weight_error) if earlier else {},
        quality=None,
    )
