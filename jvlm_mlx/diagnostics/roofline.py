"""How long work takes: kernels with their operations and bytes, at the rates of a machine.

A stage is the list of its kernels, in the order in which a GPU runs them. Everything else follows:
the number of launches, the command buffers that MLX makes of them, and the time at given rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..startup import MAX_MEGABYTES, MAX_OPERATIONS

_BUFFER_LIMITS = {"p": (20, 40), "g": (40, 40), "s": (50, 50), "d": (50, 50)}
"""Kernels and megabytes of a command buffer, by the last letter of the GPU's architecture."""


def buffer_limits(architecture: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the kernels and megabytes after which MLX ends a command buffer.

    Args:
        architecture: of the GPU, as in `applegpu_g16s`.
        environment: of the process, which may set other limits.
    """
    usual = _BUFFER_LIMITS.get(architecture[-1:], _BUFFER_LIMITS["g"])
    names = MAX_OPERATIONS[0], MAX_MEGABYTES[0]
    kernels, megabytes = (
        int(environment[name]) if environment.get(name, "").isdigit() else value
        for name, value in zip(names, usual, strict=True)
    )
    return kernels, megabytes


@dataclass(frozen=True)
class Rates:
    """What a machine can do, measured or tabled."""

    flops: float
    """Floating-point operations per second of large matrix products."""
    bandwidth: float
    """Bytes per second that a kernel reads from memory and writes to it."""
    launch: float
    """Seconds that each kernel costs beside its work."""


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored, and what is computed in."""

    name: str
    """`bfloat16`, `4-bit`, ..."""
    bits: int | None
    """Of a packed weight; None if weights are stored in the type that is computed in."""
    value_bytes: int
    """Of an activation, of a scale, and of a key or value in the cache."""
    group_size: int = 64
    """Packed weights that share a scale and a bias."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight, with its fraction of scale and bias."""
        if self.bits is None:
            return self.value_bytes
        return self.bits / 8 + 2 * self.value_bytes / self.group_size


BFLOAT16 = WeightFormat("bfloat16", None, 2)
"""What the release stores."""


@dataclass(frozen=True)
class Kernel:
    """One launch."""

    name: str
    flops: float
    read: float
    """Bytes."""
    written: float
    """Bytes."""

    def seconds(self, rates: Rates) -> float:
        """Return its time: the slower of arithmetic and memory, and the launch."""
        work = max(self.flops / rates.flops, (self.read + self.written) / rates.bandwidth)
        return work + rates.launch


@dataclass(frozen=True)
class Stage:
    """The kernels of one stage."""

    name: str
    kernels: tuple[Kernel, ...]
    on_host: bool = False
    """Whether the CPU computes it without MLX; then a kernel is a pass over arrays."""

    @property
    def flops(self) -> float:
        """All operations."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def nbytes(self) -> float:
        """All bytes that are read and written."""
        return sum(kernel.read + kernel.written for kernel in self.kernels)

    @property
    def launches(self) -> int:
        """Kernels of the GPU."""
        return 0 if self.on_host else len(self.kernels)

    def flops_of(self, *names: str) -> float:
        """Return the operations of the kernels with these names."""
        return sum(kernel.flops for kernel in self.kernels if kernel.name in names)

    def command_buffers(self, limits: tuple[int, int]) -> int:
        """Return how many command buffers MLX makes: each ends after some kernels or megabytes.

        Args:
            limits: see `buffer_limits`.
        """
        max_kernels, megabytes = limits
        buffers = kernels = 0
        size = 0.0
        for kernel in self.kernels if not self.on_host else ():
            if not kernels:
                buffers += 1
            kernels += 1
            size += kernel.read
            if kernels > max_kernels or size > megabytes * 2**20:
                kernels, size = 0, 0.0
        return buffers

    def seconds(self, rates: Rates) -> float:
        """Return the time it takes at these rates."""
        return sum(kernel.seconds(rates) for kernel in self.kernels)
