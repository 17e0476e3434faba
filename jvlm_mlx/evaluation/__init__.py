"""Benchmarks: prompts, exact scorers, runs over files of questions, and comparisons of runs."""
