"""`python -m convert` from a clone; installed, the same is `jvlm-convert`."""
