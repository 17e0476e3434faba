"""All checks in the order of the report, and what is suspected where something is slow."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx

from ..config.dtypes import automatic_dtype
from . import performance_model as performance
from .chips import find_chip
from .equality import TOLERANCES, check_equality
from .kernels import check_kernels
from .machine import SLOW_BLAS, System, check_machine
from .measurements import StageRuns, check_preprocessing
from .performance_model import LONG_PROMPT
from .rates import FULL, QUICK, measure_rates, weight_format
from .report import SLOW, Finding, guarded, time_text
from .roofline import Rates, WeightFormat
from .sample_model import narrow_config, released_config, with_depth

_SLOW_MATMUL = 20e9
"""A reference BLAS does 1 to 3 GFLOP/s on a core, a tuned one 30 and more."""
_CONDITIONS = ("swap in use", "thermal state", "load", "power mode", "system", "virtual machine")
"""Findings about the machine that explain slow stages, the most telling first."""
_VOCABULARY = 16_384
"""Rows of the head of released width that results are examined with."""


@dataclass
class CheckUp:
    """One examination of this machine.

    Args:
        system: what the operating system says.
        speed: whether to measure as well.
        full: whether to run the release's widths, layers and prompt, as a GPU can; else narrow
            models for results, and as much of each stage as takes a second or two.
        findings: so far; what was found already may explain what is found later.
    """

    system: System
    speed: bool = True
    full: bool = False
    findings: list[Finding] = field(default_factory=list)

    def run(self) -> Iterator[Finding]:
        """Yield one finding after the other; no exception of a check gets out."""
        on_gpu = mx.default_device().type == mx.gpu
        dtype = automatic_dtype()
        config = with_depth(released_config(), 2, 2, _VOCABULARY) if self.full else narrow_config()
        checks = {
            "machine": partial(check_machine, self.system),
            "fused attention": partial(check_kernels, dtype),
            "equality": partial(check_equality, config, tuple(TOLERANCES), dtype),
        }
        if self.speed:
            checks["preprocessing"] = partial(check_preprocessing, self.suspect)
            all_bits = (None, 8, 4) if on_gpu or self.full else (None, 4)
            for bits in all_bits:
                form = weight_format(dtype, bits)
                checks[f"speed, {form.name}"] = partial(self._check_speed, form, dtype)
        for name, check in checks.items():
            for finding in guarded(name, check):
                self.findings.append(finding)
                yield finding

    def suspect(self, stage: str) -> str:
        """Return what probably makes a stage slower than the model predicts."""
        for finding in self.findings:
            if finding.data.get("stage") == stage and finding.data.get("fused") is False:
                return "its attention is not fused"
            if finding.problem and finding.value.startswith("of another type"):
                return f"activations are {finding.value}"
        reasons = {finding.name: finding.suspect for finding in self.findings}
        conditions = [reasons[name] for name in _CONDITIONS if reasons.get(name)]
        on_cpu = mx.default_device().type == mx.cpu
        if on_cpu and stage in ("tower", "connector", "prefill"):
            conditions.append("MLX's CPU backend does norms, softmax and activations on one core")
        return str(next(iter(conditions), "nothing known explains it: please report this"))

    def _check_speed(self, form: WeightFormat, dtype: mx.Dtype) -> Iterator[Finding]:
        """Yield the rates of a format, what they allow, and how long the stages take."""
        effort = FULL if self.full else QUICK
        rates = measure_rates(form, dtype, effort)
        yield from self._rate_findings(form, rates)
        yield from computed(form, rates)
        yield from StageRuns(form, dtype, rates, effort, self.suspect).check()

    def _rate_findings(self, form: WeightFormat, rates: Rates) -> Iterator[Finding]:
        """Yield the rates, beside those of the chip if it is in the table."""
        on_gpu = mx.default_device().type == mx.gpu
        chip = find_chip(self.system.brand or "", self.system.gpu_cores) if on_gpu else None
        slow_blas = not on_gpu and form.bits is None and rates.flops < _SLOW_MATMUL
        problem = f"matrix products are slow here: {SLOW_BLAS}" if slow_blas else None
        for name, value, rate, tabled in (
            ("matrix products", f"{rates.flops / 1e9:.0f} GFLOP/s", rates.flops,
             chip and chip.rates.flops),
            ("reading weights", f"{rates.bandwidth / 1e9:.1f} GB/s", rates.bandwidth,
             chip and chip.rates.bandwidth),
        ):  # fmt: skip
            fraction = rate / tabled if tabled else 1.0
            if chip is not None:
                value += f", {fraction:.0%} of what {chip.name} should reach"
            yield Finding(
                f"{name}, {form.name}", value,
                problem if name == "matrix products" else None,
                self.suspect("") if fraction < SLOW else None,
                data={"rate": rate, "tabled": tabled},
            )  # fmt: skip
        yield Finding(
            f"a small kernel, {form.name}", time_text(rates.launch), data={"seconds": rates.launch}
        )


def computed(form: WeightFormat, rates: Rates) -> Iterator[Finding]:
    """Yield what rates allow at best for the release and a photo of 13 tiles."""
    config, prompt = released_config(), LONG_PROMPT
    if form.bits is None:
        parts = [
            *[performance.tower(config, tiles, form) for tiles in (4, 4, 4, 1)],
            performance.connector(config, prompt.windows, form),
            performance.prefill(config, prompt.tokens, form),
            performance.head(config, form),
        ]
        seconds = sum(part.seconds(rates) for part in parts)
        yield Finding(
            f"first token of 13 tiles, {form.name}", f"at best {time_text(seconds)} (computed)",
            data={"computed_seconds": seconds},
        )  # fmt: skip
    step = performance.decode_step(config, prompt.tokens, form).seconds(rates)
    yield Finding(
        f"tokens a second, {form.name}", f"at most {1 / step:.1f} (computed)",
        data={"computed_seconds": step},
    )  # fmt: skip
