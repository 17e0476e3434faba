"""A check-up of the machine: what it is, which kernels are fused, whether results are right."""

from .checks import check_all
from .findings import Finding

__all__ = ["Finding", "check_all"]
