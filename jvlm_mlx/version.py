"""The version of the distribution; also written into converted checkpoints."""

__version__ = "0.1.0"
