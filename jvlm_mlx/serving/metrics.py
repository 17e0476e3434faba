"""Figures of the server in the text format of Prometheus."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from .scheduler import Scheduler


@dataclass
class Counters:
    """What happened since the start, for health and metrics."""

    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


def as_text(scheduler: "Scheduler") -> str:
    """Return all figures, each with its help and type."""
    counters = scheduler.counters
    lines: list[str] = []

    def add(name: str, kind: str, text: str, value: float, **labels: str) -> None:
        full = f"jvlm_{name}"
        head = f"# TYPE {full} {kind}"
        if head not in lines:
            lines.extend((f"# HELP {full} {text}", head))
        shown = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{full}{{{shown}}} {value:g}" if shown else f"{full} {value:g}")

    for outcome in ("finished", "cancelled", "failed", "refused"):
        add(
            "requests_total", "counter", "Choices by how they ended.",
            getattr(counters, outcome), outcome=outcome,
        )  # fmt: skip
    add("requests_queued", "gauge", "Choices that wait.", scheduler.queued)
    add("requests_active", "gauge", "Choices in prefill or decoding.", scheduler.active)
    add("prompt_tokens_total", "counter", "Tokens of prompts.", counters.prompt_tokens)
    add(
        "cached_tokens_total", "counter", "Tokens of prompts that were cached.",
        counters.cached_tokens,
    )  # fmt: skip
    add("generated_tokens_total", "counter", "Tokens generated.", counters.generated_tokens)
    for name, stats in scheduler.caches.stats().items():
        add("cache_bytes", "gauge", "Device memory of caches.", stats.nbytes, cache=name)
    add("memory_bytes", "gauge", "Device memory in use.", mx.get_active_memory())
    return "\n".join(lines) + "\n"
