"""What the benchmarks share: models, pictures, timing, limits, counting and reports."""
