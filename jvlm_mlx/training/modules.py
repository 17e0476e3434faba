"""The three parts that are trained apart: which parameter is whose, and which decay."""

PARTS = ("vision_tower", "connector", "decoder")
"""Embedding tables and head belong to the decoder."""


def part_of(path: str) -> str:
    """Return the part that a parameter of the model belongs to, by its path."""
    first = path.split(".", 1)[0]
    return "decoder" if first == "lm_head" else first


def decays(path: str, dimensions: int) -> bool:
    """Return whether weight decay pulls a parameter towards zero.

    It does for the matrices of linear layers and adapters. Scales of norms and biases keep their
    size, and so do tables, of which one step sees few rows.

    Args:
        path: of the parameter.
        dimensions: number of its axes.
    """
    tables = ("embedding", "embedding.weight", "pad_embed", "position_embedding")
    return (dimensions > 1 and not path.endswith(tables)) or path.endswith("patch_embedding.weight")
