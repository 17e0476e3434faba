"""Checks of the machine: what it is, which kernels are fused, whether results are right."""
