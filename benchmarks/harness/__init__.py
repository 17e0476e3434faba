"""What the benchmarks share: models, images, timing, limits, counting and reports."""
