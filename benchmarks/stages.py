"""Time a question about a photo stage by stage, at the released geometry.

    python -m benchmarks.stages --tiles 2 5 10 13
    python -m benchmarks.stages --tiles 5 --against mlx-vlm --layers 0.25
    python -m benchmarks.stages --model DIR --dtype bfloat16

Weights are random unless a checkpoint is given; time does not depend on them. Each stage is
shown as a fraction of what this machine's matrix products (tower, connector, prefill) or weight
streaming (decode) reach in the same run; both are measured before every turn of requests, since a
shared machine is not equally fast all the time.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from jvlm_mlx.checkpoint.loader import load
from jvlm_mlx.config.dtypes import FLOAT_DTYPES
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.diagnostics.performance_model import connector, decode_step, prefill, tower
from jvlm_mlx.diagnostics.roofline import WeightFormat
from jvlm_mlx.diagnostics.sample_model import random_model
from jvlm_mlx.model import Model

from .harness.charts import Estimate, bar_chart
from .harness.machine import Limits, describe_machine, measure_limits, median_limits
from .harness.models import released_model_config
from .harness.photos import TILES
from .harness.pipelines import STAGES, OwnPipeline, PeerPipeline, Pipeline
from .harness.report import json_line, markdown_table
from .harness.timing import Timing, timed

OWN, PEER = "jvlm-mlx", "mlx-vlm"
FIRST_TOKEN = "first token"
TOWER_AND_CONNECTOR = "tower + connector"
_SUMS = {TOWER_AND_CONNECTOR: ("tower", "connector"), FIRST_TOKEN: STAGES[1:-1]}


def run_stages(
    pipelines: dict[str, Pipeline],
    *,
    warmup: int,
    repeats: int,
    decode_steps: int,
    dtype: mx.Dtype,
) -> tuple[dict[str, dict[str, Timing]], Limits]:
    """Run whole requests in turn, A B A B, and return timings by pipeline and stage, and limits.

    Sums (`tower + connector`, `first token`) are of the stages of one request. Limits are measured
    with arrays of `dtype` before every turn that counts; the medians are returned.
    """
    limits: list[Limits] = []
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in pipelines}
    peaks: dict[str, dict[str, int]] = {name: {} for name in pipelines}
    for turn in range(warmup + repeats):
        if turn >= warmup:
            limits.append(measure_limits(dtype))
            mx.clear_cache()
        for name, pipeline in pipelines.items():
            taken: dict[str, list[float]] = {}
            for stage, work in pipeline.stages().items():
                for _ in range(decode_steps if stage == "decode" else 1):
                    seconds_taken, peak = timed(work)
                    taken.setdefault(stage, []).append(seconds_taken)
                    peaks[name][stage] = max(peaks[name].get(stage, 0), peak)
            mx.clear_cache()
            if turn < warmup:
                continue
            for total, parts in _SUMS.items():
                taken[total] = [sum(sum(taken[part]) for part in parts)]
                peaks[name][total] = max(peaks[name][part] for part in parts)
            for stage, values in taken.items():
                seconds[name].setdefault(stage, []).extend(values)
    times = {
        name: {
            stage: Timing(tuple(values), peaks[name][stage])
            for stage, values in seconds[name].items()
        }
        for name in pipelines
    }
    return times, median_limits(limits)


def fractions(
    config: ModelConfig, pipeline: Pipeline, times: dict[str, Timing], limits: Limits, size: int
) -> dict[str, float]:
    """Return each stage's fraction of the machine's limit, from the work the model needs.

    Args:
        config: of the model.
        pipeline: what was timed; the peer is held to the same work, however much it does.
        times: by stage.
        limits: measured in the same run.
        size: bytes of a weight.
    """
    form = WeightFormat("", None, size)
    windows = int((pipeline.inputs.image_input_idx >= 0).sum())
    tiles = pipeline.tiles * tower(config, 1, form).flops
    pooled = connector(config, windows, form).flops
    work = {
        "tower": tiles,
        "connector": pooled,
        TOWER_AND_CONNECTOR: tiles + pooled,
        "prefill": prefill(config, pipeline.length, form).flops,
    }
    found = {stage: work[stage] / times[stage].median / limits.matmul for stage in work}
    streamed = decode_step(config, pipeline.length, form).nbytes
    found["decode"] = streamed / times["decode"].median / limits.streaming
    return found


def main() -> None:
    """Run from the command line."""
    arguments = _arguments()
    dtype = FLOAT_DTYPES[arguments.dtype].mlx
    model = _model(arguments.model, arguments.layers, dtype)
    size = dtype.size
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    peer = _peer(model) if arguments.against else None
    for tiles in arguments.tiles:
        own = OwnPipeline(model, tiles, arguments.tile_group_size)
        pipelines: dict[str, Pipeline] = {OWN: own}
        if peer is not None:
            pipelines[PEER] = PeerPipeline(peer, tiles)
        times, limits = run_stages(
            pipelines,
            warmup=arguments.warmup,
            repeats=arguments.repeats,
            decode_steps=arguments.decode_steps,
            dtype=dtype,
        )
        fraction = {
            name: fractions(model.config, own, times[name], limits, size) for name in pipelines
        }
        print(f"\n{tiles} tiles, {own.length} tokens; limits: {limits}")
        print(_table(times, fraction))
        result = {
            name: {stage: timing.summary() for stage, timing in times[name].items()}
            for name in pipelines
        }
        content = {
            "machine": machine,
            "limits": vars(limits),
            "layers": arguments.layers,
            "dtype": arguments.dtype,
            "tiles": tiles,
            "tokens": own.length,
            "fractions": fraction,
            **result,
        }
        print(json_line("stages", content))
        if arguments.chart:
            draw([content], arguments.chart)


def draw(lines: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the JSON lines of this benchmark, a chart for each number of tiles."""
    for line in lines:
        bars = {
            name: [Estimate.of_timing(line[name][stage]) for stage in STAGES]
            for name in (OWN, PEER)
            if name in line
        }
        bar_chart(
            folder / f"stages-{line['tiles']}-tiles.png",
            f"Stages of an answer: {line['tiles']} tiles, {line['tokens']} tokens",
            "Seconds (logarithmic; error bars from the fastest to the slowest)",
            STAGES,
            bars,
            logarithmic=True,
        )


def _table(times: dict[str, dict[str, Timing]], fraction: dict[str, dict[str, float]]) -> str:
    header = ["stage"]
    for name in times:
        header += [name, "of the limit", "peak GB"]
    header += ["ratio"] * (len(times) > 1)
    rows = []
    for stage in (*STAGES[:-1], *_SUMS, STAGES[-1]):
        row: list[str] = [stage]
        for name, stages in times.items():
            limit = fraction[name].get(stage)
            row += [str(stages[stage]), "" if limit is None else f"{limit:.0%}"]
            row.append(f"{stages[stage].peak_bytes / 1e9:.2f}")
        if len(times) > 1:
            row.append(f"{times[PEER][stage].median / times[OWN][stage].median:.2f}x")
        rows.append(row)
    return markdown_table(header, rows)


def _model(folder: str | None, layers: float, dtype: mx.Dtype) -> Model:
    if folder is None:
        return random_model(released_model_config(layers), dtype)
    return load(folder, dtype=dtype)[0]


def _peer(model: Model) -> Any:
    from .harness.peer import make_peer

    return make_peer(model)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", help="checkpoint to use; else random weights")
    parser.add_argument("--layers", type=float, default=1.0, help="fraction of the layers to keep")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, default="float32")
    parser.add_argument("--tiles", type=int, nargs="+", choices=TILES, default=list(TILES))
    parser.add_argument("--tile-group-size", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1, help="requests that do not count")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decode-steps", type=int, default=8, help="tokens of each request")
    parser.add_argument("--against", choices=(PEER,), help="run the peer in turn")
    parser.add_argument("--chart", type=Path, metavar="DIR", help="write PNGs (needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
