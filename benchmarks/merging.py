"""Merge an image's features into a prompt: a gather against the peer's write for each row.

python -m benchmarks.merging --against mlx-vlm
"""

import argparse
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from jvlm_mlx.diagnostics.sample_model import random_model

from .harness.machine import describe_machine
from .harness.models import released_model_config, weightless_model
from .harness.photos import TILES, photo_inputs
from .harness.report import json_line, markdown_table
from .harness.timing import Timing, measure

DTYPE = mx.float32
Work = Callable[..., Any]


def merge_timings(against: bool, repeats: int) -> dict[str, dict[str, Timing]]:
    """Time the merge of the features of 13 tiles, alone and with the lookup of the tokens."""
    config = released_model_config(0.04)
    model = random_model(config, DTYPE)
    inputs = photo_inputs(max(TILES))
    ids, positions = mx.array(inputs.input_ids), mx.array(inputs.image_input_idx)
    plan = model.plan(inputs.image_input_idx, ids.shape[1])
    features = mx.random.normal((plan.num_windows, config.decoder.hidden_size))
    embeddings = model.decoder.embed(ids)
    mx.eval(ids, positions, features, embeddings)
    whole: dict[str, Work] = {
        "jvlm-mlx": lambda: model.merge(model.decoder.embed(ids), features, plan.sources)
    }
    alone: dict[str, Work] = {"jvlm-mlx": lambda: model.merge(embeddings, features, plan.sources)}
    if against:
        from .harness.peer import make_peer

        peer = make_peer(model)
        # The peer has a row for every window, also for those that reach no token.
        rows = mx.random.normal((*positions.shape, config.decoder.hidden_size))
        mx.eval(rows)
        lookup = peer.language_model.embedding

        def peer_merge(embed: Work) -> mx.array:
            peer.language_model.embedding = embed
            return peer.get_input_embeddings(
                ids, ids, cached_image_features=rows, image_input_idx=positions[None, 0]
            ).inputs_embeds

        whole["mlx-vlm"] = lambda: peer_merge(lookup)
        alone["mlx-vlm"] = lambda: peer_merge(lambda _: embeddings)
    return {
        "ids and features to embeddings": measure(whole, repeats=repeats),
        "without the lookup of the ids": measure(alone, repeats=repeats),
    }


def table_copies() -> dict[str, int]:
    """Return the memory that a lookup of one token takes beside the table's, in bytes."""
    config = released_model_config(0.04)
    rows = config.decoder.embedding_size + config.decoder.additional_vocab_size
    model = weightless_model(config, DTYPE)
    model.decoder.embedding.weight = mx.zeros((rows, config.decoder.hidden_size)) + 1
    mx.eval(model.decoder.embedding.weight)
    lookup = measure({"lookup": lambda: model.decoder.embed(mx.array([[5]]))}, repeats=1)
    return {
        "table": model.decoder.embedding.weight.nbytes,
        "lookup": lookup["lookup"].peak_bytes,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--against", choices=("mlx-vlm",), help="time the peer in turn")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    timings = merge_timings(bool(arguments.against), arguments.repeats)
    lines = [
        (what, name, str(each), f"{each.median / found['jvlm-mlx'].median:.0f}")
        for what, found in timings.items()
        for name, each in found.items()
    ]
    print(markdown_table(("merge of 13 tiles", "by", "time", "times as long"), lines))
    copies = table_copies()
    print(
        f"embedding table {copies['table'] / 1e6:.0f} MB;"
        f" a decode step's lookup takes {copies['lookup'] / 1e6:.3f} MB beside it"
    )
    result = {
        what: {name: timing.summary() for name, timing in found.items()}
        for what, found in timings.items()
    }
    print(json_line("merging", {"machine": describe_machine(), **result, "bytes": copies}))


if __name__ == "__main__":
    main()
