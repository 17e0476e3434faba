"""Sizes and speeds of an answer, in a few lines for people."""

from ..generation.response import Counts


def summarize(counts: Counts) -> str:
    """Return what `--verbose` and `/stats` show of an answer."""
    prompt = f"prompt: {counts.prompt_tokens} tokens"
    if counts.tiles:
        tiles = ", ".join(map(str, counts.tiles))
        noun = "image" if len(counts.tiles) == 1 else "images"
        prompt += f", {counts.image_tokens} of them in {len(counts.tiles)} {noun} of {tiles} tiles"
    if counts.cached_tokens:
        prompt += f", {counts.cached_tokens} known before"
    return "\n".join(
        (
            f"{prompt}, {counts.prompt_tps:.1f} tokens/s",
            f"first token after {counts.first_token_seconds:.2f} s,"
            f" {counts.image_seconds:.2f} s of it for images",
            f"answer: {counts.generation_tokens} tokens, {counts.generation_tps:.1f} tokens/s,"
            f" ended by {counts.finish_reason}",
            f"peak memory: {counts.peak_memory:.2f} GB",
        )
    )
