"""Time, memory and sizes of conversion, by recipe.

Writes a random checkpoint of the released geometry (bfloat16, sharded), converts it in a process
of its own for each recipe, and reports that process's highest resident memory. By default a
quarter of the layers, which takes 5 GB of disk; with `--layers 1` the whole, which takes 11 GB.

    python -m benchmarks.conversion
    python -m benchmarks.conversion --layers 1 --runs 4-bit 4-bit-mixed

The last line is JSON.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.report import markdown_table
from benchmarks.random_checkpoint import checkpoint_bytes, released_config, write_random_checkpoint
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.progress import ProgressEvent
from jvlm_mlx.units import bytes_text

RUNS: dict[str, dict[str, Any]] = {
    "as stored": {},
    "8-bit": {"quantize": True, "q_bits": 8},
    "4-bit": {"quantize": True},
    "4-bit-mixed": {"quantize": True, "recipe": "mixed"},
    "4-bit-language-only": {"quantize": True, "recipe": "language-only"},
    "3-bit": {"quantize": True, "q_bits": 3},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
    # Slow on the CPU: mlx compares each value with every 4-bit number there is.
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4"},
}
QUICK_RUNS = ("as stored", "8-bit", "4-bit", "4-bit-mixed", "4-bit-language-only", "mxfp8")
MAX_SHARD_BYTES = 2_000_000_000


def peak_memory() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(source: Path, target: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Convert in this process, and return what it took."""
    times: dict[str, list[float]] = {}

    def progress(event: ProgressEvent) -> None:
        now = time.perf_counter()
        times.setdefault(event.stage, [now, now])[1] = now

    imported = peak_memory()
    start = time.perf_counter()
    conversion = convert(source, target, progress=progress, **options)
    seconds = time.perf_counter() - start
    source_bytes = sum(conversion.plan.source_bytes.values())
    return {
        "seconds": seconds,
        "converting_seconds": times["converting"][1] - times["converting"][0],
        "source_bytes": source_bytes,
        "output_bytes": sum(conversion.plan.output_bytes.values()),
        "bits_per_weight": conversion.plan.bits_per_weight,
        "source_bytes_per_second": source_bytes / seconds,
        "peak_bytes": peak_memory(),
        "imported_bytes": imported,
        "weight_error": dict(conversion.weight_error),
    }


def quantizer_speed(options: dict[str, Any]) -> float | None:
    """Return how many bytes of bfloat16 a second mlx alone quantizes, in one thread."""
    import mlx.core as mx

    from jvlm_mlx.conversion.recipes import ConversionOptions

    if not options.get("quantize"):
        return None
    form = ConversionOptions(**options).quantization
    weight = mx.random.normal((512, 2048)).astype(mx.bfloat16)
    mx.eval(weight)
    done, start = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - start < 1:
        mx.eval(mx.quantize(weight, form.group_size, form.bits, form.mode))
        done += weight.nbytes
    return done / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--layers", type=float, default=0.25, help="fraction of the layers")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(QUICK_RUNS))
    parser.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    # For the process that a run is made in.
    parser.add_argument("--measure", nargs=3, metavar=("RUN", "SOURCE", "TARGET"))
    arguments = parser.parse_args()
    if arguments.measure:
        run, source, target = arguments.measure
        print(json.dumps(measure(Path(source), Path(target), RUNS[run])))
        return
    config = released_config(arguments.layers)
    size = checkpoint_bytes(config, dtype="bfloat16")
    print(f"random checkpoint of {arguments.layers:g} of the layers: {bytes_text(size)}")
    results = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target = Path(name) / "source", Path(name) / "target"
        start = time.perf_counter()
        write_random_checkpoint(source, config, max_shard_bytes=MAX_SHARD_BYTES)
        print(f"written in {time.perf_counter() - start:.1f} s")
        for run in arguments.runs:
            command = [sys.executable, "-m", "benchmarks.conversion", "--measure", run]
            process = subprocess.run(
                [*command, source, target], stdout=subprocess.PIPE, text=True, check=True
            )
            results[run] = json.loads(process.stdout.splitlines()[-1])
            results[run]["quantizer_bytes_per_second"] = quantizer_speed(RUNS[run])
            shutil.rmtree(target)
    rows = [
        (
            run,
            bytes_text(result["output_bytes"]),
            f"{result['bits_per_weight']:.2f}",
            f"{result['converting_seconds']:.1f}",
            f"{result['source_bytes'] / result['converting_seconds'] / 1e6:.0f}",
            "" if (alone := result["quantizer_bytes_per_second"]) is None else f"{alone / 1e6:.0f}",
            bytes_text(result["peak_bytes"]),
        )
        for run, result in results.items()
    ]
    head = (
        "run", "size", "bits", "convert s", "MB/s", "mlx alone MB/s", "peak memory",
    )  # fmt: skip
    print(markdown_table(head, rows))
    print(json.dumps({"layers": arguments.layers, "runs": results}))


if __name__ == "__main__":
    main()
