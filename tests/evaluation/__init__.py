"""Benchmarks: scorers, files, runs and comparisons."""
