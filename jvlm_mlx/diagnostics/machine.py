"""Chip, memory, system, power and versions, and which of them is wrong or slows things down.

What macOS says is read from its own commands; none of them needs a password.
"""

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from ..units import total_memory
from .report import Finding

SLOW_BLAS = (
    "MLX's CPU build uses a slow reference BLAS; preload OpenBLAS (LD_PRELOAD=.../libopenblas.so.0)"
)
"""What there is to say where `has_slow_blas`."""
MIN_MLX = (0, 32, 2)
"""The first with a fused kernel for heads of 72 values, the vision tower's."""
MIN_MACOS = (14, 0)
"""The first that MLX has wheels for."""
ACCELERATED_MACOS = (26, 2)
"""The first that lets programs use the neural accelerators of M5."""
MIN_MEMORY = 8e9
"""The smallest Mac has 8 GiB, of which bfloat16 weights take 5 GB."""
MAX_SWAP = 1e9
"""Bytes in use from where on swapping may slow things down."""
MAX_LOAD = 0.5
"""Fraction of the CPU's cores that other programs may keep busy."""

_SYSCTL = (
    "machdep.cpu.brand_string", "vm.swapusage", "iogpu.wired_limit_mb", "kern.hv_vmm_present",
    "kern.memorystatus_vm_pressure_level",
)  # fmt: skip
_POWER_MODES = {"0": "automatic", "1": "low power", "2": "high power"}
_PRESSURE = {"1": "normal", "2": "warning", "4": "critical"}

_MAPPED = Path("/proc/self/maps")
"""The files in this process's memory, on Linux."""

Command = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints; nothing if it cannot be run."""


@dataclass(frozen=True)
class System:
    """What the operating system says about the machine; None for what it does not say."""

    brand: str | None = None
    """`Apple M4 Max`, for instance."""
    gpu_cores: int | None = None
    power_mode: str | None = None
    on_battery: bool | None = None
    thermal: str | None = None
    """`nominal`, or what the system limits."""
    wired_limit: int | None = None
    """Bytes that somebody set with sysctl; None for macOS's own limit."""
    swap: int | None = None
    """Bytes in use."""
    pressure: str | None = None
    """Of memory: `normal`, `warning` or `critical`."""
    is_virtual: bool | None = None


def read_system(run: Command | None = None) -> System:
    """Ask macOS's commands, or Linux's files."""
    if platform.system() != "Darwin":
        files = (Path("/proc/meminfo"), Path("/proc/cpuinfo"))
        texts = [file.read_text(errors="replace") if file.exists() else "" for file in files]
        return parse_linux(*texts)
    run = run or _output
    return parse_macos(
        sysctl=run(["sysctl", *_SYSCTL]),
        settings=run(["pmset", "-g"]),
        battery=run(["pmset", "-g", "batt"]),
        thermal=run(["pmset", "-g", "therm"]),
        gpu=run(["ioreg", "-r", "-d", "1", "-c", "AGXAccelerator"]),
    )


def parse_macos(*, sysctl: str, settings: str, battery: str, thermal: str, gpu: str) -> System:
    """Read what `sysctl`, `pmset -g`, its `batt` and `therm`, and `ioreg` print."""
    values = dict(re.findall(r"^([\w.]+): (.*)$", sysctl, re.MULTILINE))
    swap = re.search(r"used = ([\d.]+)([KMG])", values.get("vm.swapusage", ""))
    wired = values.get("iogpu.wired_limit_mb", "0")
    mode = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)", settings, re.MULTILINE)
    cores = re.search(r'"gpu-core-count" = (\d+)', gpu)
    source = re.search(r"Now drawing from '(\w+) Power'", battery)
    virtual = values.get("kern.hv_vmm_present")
    return System(
        brand=values.get("machdep.cpu.brand_string"),
        gpu_cores=int(cores[1]) if cores else None,
        power_mode=_POWER_MODES.get(mode[1]) if mode else None,
        on_battery=source[1] == "Battery" if source else None,
        thermal=_thermal(thermal),
        wired_limit=int(wired) * 2**20 if wired.isdigit() and int(wired) else None,
        swap=round(float(swap[1]) * 1024 ** ("KMG".index(swap[2]) + 1)) if swap else None,
        pressure=_PRESSURE.get(values.get("kern.memorystatus_vm_pressure_level", "")),
        is_virtual=None if virtual is None else virtual == "1",
    )


def _thermal(text: str) -> str | None:
    """Return what `pmset -g therm` says is limited."""
    if not text.strip():
        return None
    limits = [
        f"{name.replace('_', ' ').lower()} {percent} %"
        for name, percent in re.findall(r"(CPU_\w+_Limit)\s*=\s*(\d+)", text)
        if int(percent) < 100
    ]
    level = re.search(r"[Tt]hermal warning level.*?(\d+)", text)
    if level and int(level[1]):
        limits.append(f"warning level {level[1]}")
    return ", ".join(limits) or "nominal"


def parse_linux(meminfo: str, cpuinfo: str) -> System:
    """Read /proc/meminfo and /proc/cpuinfo."""
    kilobytes = {
        name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE)
    }
    brand = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    has_swap = {"SwapTotal", "SwapFree"} <= kilobytes.keys()
    return System(
        brand=brand[1].strip() if brand else None,
        swap=(kilobytes["SwapTotal"] - kilobytes["SwapFree"]) * 1024 if has_swap else None,
        is_virtual="hypervisor" in flags[1].split() if flags else None,
    )


def _output(command: Sequence[str]) -> str:
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return finished.stdout


def check_machine(system: System) -> Iterator[Finding]:
    """Yield what this machine is."""
    info = mx.device_info()
    on_gpu = mx.default_device().type == mx.gpu
    architecture = str(info.get("architecture") or platform.machine())
    chip = str(system.brand or info.get("device_name") or architecture)
    cores = f"{os.cpu_count()} cores" + (
        f", {system.gpu_cores} of the GPU" * bool(system.gpu_cores)
    )
    yield Finding(
        "chip", f"{chip}, {cores}", _chip_problem(on_gpu),
        data={"architecture": architecture, "gpu_cores": system.gpu_cores},
    )  # fmt: skip
    memory = total_memory()
    yield Finding(
        "memory",
        f"{memory / 1e9:.1f} GB",
        "this is less than 8 GB: only a 4-bit model and small images will fit"
        if memory < MIN_MEMORY
        else None,
    )
    limit = info.get("max_recommended_working_set_size")
    if limit:
        wired = f", {system.wired_limit / 1e9:.1f} GB set by sysctl" if system.wired_limit else ""
        yield Finding("memory for the GPU", f"{int(limit) / 1e9:.1f} GB{wired}")
    problem, suspect = _system_problem(architecture)
    name = f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else platform.platform()
    yield Finding("system", f"{name}, Python {platform.python_version()}", problem, suspect)
    yield Finding("MLX", f"{version('mlx')}, mlx-lm {version('mlx-lm')}", _mlx_problem())
    yield Finding("device", "GPU" if on_gpu else f"CPU, BLAS: {blas_name() or 'reference'}")
    yield from _check_conditions(system)


def _check_conditions(system: System) -> Iterator[Finding]:
    """Yield what may change from one minute to the next."""
    if system.power_mode or system.on_battery is not None:
        source = {None: "", True: ", on battery", False: ", on mains"}[system.on_battery]
        yield Finding(
            "power mode", f"{system.power_mode or 'unknown'}{source}",
            suspect="Low Power Mode slows the GPU: turn it off in System Settings, Battery"
            if system.power_mode == "low power"
            else None,
        )  # fmt: skip
    if system.thermal:
        limited = system.thermal != "nominal"
        yield Finding(
            "thermal state", system.thermal,
            suspect="the machine is hot and runs slower: let it cool down" if limited else None,
        )  # fmt: skip
    if system.swap is not None:
        pressed = system.swap > MAX_SWAP and system.pressure != "normal"
        pressure = f", memory pressure {system.pressure}" if system.pressure else ""
        yield Finding(
            "swap in use", f"{system.swap / 1e9:.1f} GB{pressure}",
            suspect="memory is short, and the system swaps: quit other programs, or take fewer bits"
            if pressed or system.pressure == "critical"
            else None,
        )  # fmt: skip
    if system.is_virtual is not None:
        yield Finding(
            "virtual machine", "yes" if system.is_virtual else "no",
            suspect="a virtual machine shares its processor: its speeds are not the machine's"
            if system.is_virtual
            else None,
        )  # fmt: skip
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    yield Finding(
        "load", f"{load:.1f} on {cores} cores",
        suspect="other programs keep the processor busy: measure again when they are done"
        if load > MAX_LOAD * cores
        else None,
    )  # fmt: skip


def _chip_problem(on_gpu: bool) -> str | None:
    if platform.system() != "Darwin":
        return None
    if platform.machine() != "arm64":
        return (
            "this Python was built for Intel and runs through Rosetta, where MLX has no GPU:"
            " install Python for Apple Silicon"
        )
    return None if on_gpu else "MLX does not use the GPU of this Mac: reinstall mlx"


def _system_problem(architecture: str) -> tuple[str | None, str | None]:
    """Return what is wrong with the version of macOS, and what is slow with it."""
    found = tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2] if part.isdigit())
    if found and found < MIN_MACOS:
        return "MLX needs macOS 14 or later: update the system", None
    generation = re.match(r"applegpu_g(\d+)", architecture)
    if found and generation and int(generation[1]) >= 17 and found < ACCELERATED_MACOS:
        return None, "this GPU's neural accelerators need macOS 26.2 or later: update the system"
    return None, None


def _mlx_problem() -> str | None:
    parts = version("mlx").split(".")
    found = tuple(int(part) for part in parts[:3] if part.isdigit())
    if found >= MIN_MLX:
        return None
    return "this MLX has no fused attention for the vision tower: pip install -U mlx"


def blas_name() -> str | None:
    """Return the BLAS of the CPU backend; None: the reference BLAS in MLX's wheel for Linux."""
    if platform.system() == "Darwin":
        return "Accelerate"
    # A preloaded library comes before the one in MLX's wheel. numpy's own has another name.
    mapped = _MAPPED.read_text(encoding="utf-8", errors="replace")
    found = set(re.findall(r"/(lib(?:openblas|mkl_rt|blis)[^/\s]*)", mapped))
    return ", ".join(sorted(found)) or None


def has_slow_blas() -> bool:
    """Return whether MLX computes on a CPU with the reference BLAS, many times slower than need be.

    Where the libraries of this process cannot be listed, it does not.
    """
    if mx.default_device().type != mx.cpu:
        return False
    try:
        return blas_name() is None
    except OSError:
        return False
