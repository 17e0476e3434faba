"""Apple's chips: GPU cores, clock and memory bandwidth, and what these allow at best.

Cores and bandwidth are Apple's technical specifications of the Macs. Clocks are those that public
GPU databases list; a core has 128 units that multiply and add once per cycle, as Apple's own
figures confirm (M1: 2.6, M1 Max: 10.4, M2: 3.6 TFLOP/s). From M5 on, matrix products run on neural
accelerators, of which Apple says only that the GPU's peak is over four times that of M4.
"""

import re
from dataclasses import dataclass

from .roofline import Rates

UNITS_PER_CORE = 128
ATTAINABLE = 0.85
"""Of each peak: what well tuned kernels reach for large matrices and for long reads."""
LAUNCH_SECONDS = 2.4e-6
"""What a small kernel that waits for another costs on any of them."""


@dataclass(frozen=True)
class Chip:
    """One chip, with one of its numbers of GPU cores."""

    name: str
    """As in `Apple M4 Max`, without the company."""
    gpu_cores: int
    gigahertz: float
    bandwidth: float
    """GB per second."""
    accelerated: float = 1.0
    """How many times the product of cores, units and clock its matrix products reach."""

    @property
    def generation(self) -> int:
        """1 for M1, and so on."""
        return int(self.name[1])

    @property
    def teraflops(self) -> float:
        """Peak of matrix products in 16 bits."""
        operations = 2 * UNITS_PER_CORE * self.gpu_cores * self.gigahertz
        return operations * self.accelerated / 1e3

    @property
    def rates(self) -> Rates:
        """What is attainable of it."""
        return Rates(
            flops=ATTAINABLE * self.teraflops * 1e12,
            bandwidth=ATTAINABLE * self.bandwidth * 1e9,
            launch=LAUNCH_SECONDS,
        )


CHIPS = (
    Chip("M1", 8, 1.278, 68),
    Chip("M1 Pro", 16, 1.296, 200),
    Chip("M1 Max", 32, 1.296, 400),
    Chip("M1 Ultra", 64, 1.296, 800),
    Chip("M2", 10, 1.398, 100),
    Chip("M2 Pro", 19, 1.398, 200),
    Chip("M2 Max", 38, 1.398, 400),
    Chip("M2 Ultra", 76, 1.398, 800),
    Chip("M3", 10, 1.398, 100),
    Chip("M3 Pro", 18, 1.398, 150),
    Chip("M3 Max", 30, 1.398, 300),
    Chip("M3 Max", 40, 1.398, 400),
    Chip("M3 Ultra", 80, 1.398, 819),
    Chip("M4", 10, 1.470, 120),
    Chip("M4 Pro", 20, 1.578, 273),
    Chip("M4 Max", 32, 1.578, 410),
    Chip("M4 Max", 40, 1.578, 546),
    # Four times the 3.76 TFLOP/s of M4; its clock alone would give 4.
    Chip("M5", 10, 1.470, 153, accelerated=4.0),
)


def find_chip(brand: str, gpu_cores: int | None = None) -> Chip | None:
    """Return the chip that macOS calls `brand`, `Apple M4 Max` for instance; None if it is new.

    Args:
        brand: as `sysctl machdep.cpu.brand_string` prints it.
        gpu_cores: of this one, which may have fewer than the largest; None if unknown.
    """
    found = re.search(r"\bM\d+(?: (?:Pro|Max|Ultra))?\b", brand)
    named = [chip for chip in CHIPS if found and chip.name == found[0]]
    if not named:
        return None
    if gpu_cores is None:
        return named[-1]
    # A chip with a core less has all of its bandwidth; one with a quarter less, its own row.
    return next((chip for chip in named if gpu_cores <= chip.gpu_cores), named[-1])
