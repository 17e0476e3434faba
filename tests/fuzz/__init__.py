"""Inputs of strangers, mutated: every one is used or refused in one line."""
