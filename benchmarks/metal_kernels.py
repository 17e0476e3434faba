"""Look for the Metal kernels that the release needs in the mlx-metal wheel: no Mac needed.

    python -m benchmarks.metal_kernels
    python -m benchmarks.metal_kernels --version 0.32.4 --platform macosx_26_0_arm64
    python -m benchmarks.metal_kernels --wheel mlx_metal-0.32.4-py3-none-macosx_14_0_arm64.whl

MLX chooses its kernels by name, from type, head size, and bits and group of quantized weights; a
name that the wheel does not have is an error on a Mac, or the slow way round. So an upgrade of MLX
is looked at here before any Mac sees it. The wheel is downloaded as a file, with the index that pip
is configured with, and its library of compiled kernels searched for names. Kernels that
MLX compiles while it runs (lookups, fused elementwise chains) are not in there. The exit code is 1
if one is missing.
"""

import argparse
import mmap
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Set
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jvlm_mlx.checkpoint.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model.ops import PADDED_HEAD_SIZES

from .harness.models import released_model_config
from .harness.report import json_line, markdown_table

LIBRARY = "mlx/lib/mlx.metallib"
PLATFORMS = ("macosx_14_0_arm64", "macosx_26_0_arm64")
"""The oldest system that MLX has wheels for, and the first with neural accelerators."""
DTYPES = ("bfloat16", "float16", "float32")
_NAME = re.compile(rb"\x00([A-Za-z][A-Za-z0-9_]{3,})\x00")
_FLOAT_MODES = ("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)


@dataclass(frozen=True)
class Need:
    """Kernels for one purpose, as patterns of their whole names."""

    purpose: str
    patterns: tuple[str, ...]
    since: int = 0
    """The first system whose wheels have them."""


def needs(config: ModelConfig) -> Iterator[Need]:
    """Yield what a model needs, by purpose."""
    tower, decoder = config.tower.block.attention.head_dim, config.decoder.block.attention.head_dim

    def each(*patterns: str) -> tuple[str, ...]:
        # Some kernels spell a type as Metal does.
        metal = {"bfloat16": "bfloat16_t", "float16": "float16_t", "float32": "float"}
        return tuple(
            pattern.format(t=dtype, m=metal[dtype]) for dtype in DTYPES for pattern in patterns
        )

    def full_attention(size: int) -> str:
        return rf"steel_attention_{{t}}_bq\d+_bk\d+_bd{size}(_bv{size})?_wm\d_wn\d_mask"

    yield Need(f"attention, tower, head size {tower}", each(full_attention(tower) + "{t}"))
    yield Need(f"attention, prefill, head size {decoder}", each(full_attention(decoder) + "{t}"))
    yield Need("attention, padded batches", each(full_attention(decoder) + "bool_"))
    yield Need(
        f"attention, decode, head size {decoder}",
        each(
            rf"sdpa_vector_{{m}}_{decoder}_{decoder}",
            rf"sdpa_vector_2pass_1_{{m}}_{decoder}_{decoder}",
            rf"sdpa_vector_2pass_2_{{m}}_{decoder}",
        ),
    )
    padded = PADDED_HEAD_SIZES[tower]
    accelerated = (
        rf"steel_attention_{{t}}_bq64_bk32_bd{padded}(_bv{padded})?_wm4_wn1_mask{{t}}",
        r"steel_gemm_fused_nax_nt_{t}_{t}_bm\d+_bn\d+_bk\d+_wm\d_wn\d",
    )
    yield Need(f"neural accelerators, heads padded to {padded}", each(*accelerated), since=26)
    yield Need("attention, pooling (not fused)", each("block_softmax_(precise_)?{t}"))
    yield Need("norms", each("rms{t}", "layer_norm{t}"))
    yield Need("rotary positions", each("rope_single_{t}", "rope_{t}"))
    yield Need(
        "matrix products",
        each(
            r"steel_gemm_fused_nt_{t}_{t}_bm\d+_bn\d+_bk\d+_wm\d_wn\d",
            r"gemv_{t}_bm\d+_bn\d+_sm\d+_sn\d+_tm\d_tn\d_nc0_axpby0",
        ),
    )
    yield Need("most probable token", each("argmax_{t}"))
    yield Need("sums and casts", each("vv_Add{t}", "vv_Multiply{t}", "v_copyfloat32{t}"))
    for bits in AFFINE_BITS:
        names = []
        for group in AFFINE_GROUP_SIZES:
            end = rf"_{{m}}_gs_{group}_b_{bits}"
            names += [f"affine_qmv_fast{end}_batch_0.*", f"affine_qmv{end}_batch_0.*"]
            names += [f"affine_qmm_t{end}_alN_true_batch_0", f"affine_dequantize{end}"]
            names += [f"affine_quantize{end}"]
        yield Need(f"{bits}-bit weights, groups of 32, 64, 128", each(*names))
    for mode, group, bits in _FLOAT_MODES:
        end = rf"_{{m}}_gs_{group}_b_{bits}"
        names = [f"{mode}_qmv_fast{end}_batch_0.*", f"{mode}_qmm_t{end}_alN_true_batch_0.*"]
        yield Need(f"{mode} weights", each(*names))


def missing(need: Need, names: Set[str]) -> list[str]:
    """Return the patterns of a need that no name fits."""
    return [
        pattern
        for pattern in need.patterns
        if not any(re.fullmatch(pattern, name) for name in names)
    ]


def kernel_names(wheel: Path) -> set[str]:
    """Return the names in the library of compiled kernels of a wheel.

    Raises:
        SystemExit: the wheel has none, or is no wheel.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                library = archive.extract(LIBRARY, folder)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise SystemExit(f"{wheel} has no {LIBRARY}: {error}") from None
        with Path(library).open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return {found[1].decode() for found in _NAME.finditer(content)}


def download(release: str, platform: str, folder: Path) -> Path:
    """Download the wheel of a platform with pip, and return it.

    Raises:
        SystemExit: there is none, or no network.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", platform, "--dest", str(folder)]
    finished = subprocess.run(
        [*command, f"mlx-metal=={release}"], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode or not wheels:
        reason = (finished.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise SystemExit(f"mlx-metal {release} for {platform} cannot be downloaded: {reason}")
    return wheels[0]


def main() -> int:
    """Look, print a table, and return 1 if something that every Mac needs is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--version", default=version("mlx"), help="of mlx-metal")
    parser.add_argument("--platform", action="append", help="of a wheel; may be repeated")
    parser.add_argument(
        "--wheel", type=Path, action="append", help="look into a file instead; may be repeated"
    )
    arguments = parser.parse_args()
    found: dict[str, set[str]] = {}
    for wheel in arguments.wheel or ():
        found[wheel.name] = kernel_names(wheel)
    for platform in (arguments.platform or PLATFORMS) if not arguments.wheel else ():
        with tempfile.TemporaryDirectory() as folder:
            wheel = download(arguments.version, platform, Path(folder))
            found[platform] = kernel_names(wheel)
    rows, lacking = [], {}
    for need in needs(released_model_config()):
        cells = []
        for source, names in found.items():
            absent = missing(need, names)
            cells.append(f"{len(need.patterns) - len(absent)} of {len(need.patterns)}")
            if absent and _system(source) >= need.since:
                lacking[f"{source}: {need.purpose}"] = absent
        rows.append((need.purpose, *cells))
    kernels = (f"{source}, {len(names):,} names" for source, names in found.items())
    print(markdown_table(("kernels for", *kernels), rows))
    for place, patterns in lacking.items():
        print(f"missing in {place}: {', '.join(patterns)}")
    content = {"version": arguments.version, "sources": list(found), "missing": lacking}
    print(json_line("metal_kernels", content))
    return int(bool(lacking))


def _system(source: str) -> int:
    """Return the macOS version of a platform or of a wheel's name; a high one if it names none."""
    named = re.search(r"macosx_(\d+)_", source)
    return int(named[1]) if named else sys.maxsize


if __name__ == "__main__":
    sys.exit(main())
