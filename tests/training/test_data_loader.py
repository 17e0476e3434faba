"""The arrays of a batch."""

import mlx.core as mx
import numpy as np
import pytest

from jvlm_mlx.errors import DataError, RequestError
from jvlm_mlx.training.data_loader import validation_loader
from tests.helpers.training_examples import (
    assert_same_batch,
    assistant,
    config_of,
    example,
    image,
    image_example,
    loader_of,
    prepare,
    text,
    text_example,
    user,
    write_examples,
)


def test_examples_of_like_size_share_a_batch(mixed):
    def padding(bucket_batches):
        batches = loader_of(mixed, text_fraction=0.3, bucket_batches=bucket_batches)
        made = [batches[step] for step in range(48)]
        tokens = sum(batch.input_ids.size - batch.num_tokens for batch in made)
        tiles = sum(
            batch.image_input_idx.shape[0] * batch.image_input_idx.shape[1]
            - np.count_nonzero((batch.image_input_idx >= 0).any(axis=2))
            for batch in made
            if batch.image_input_idx is not None
        )
        return tokens, tiles

    tokens, tiles = padding(1)
    tokens_bucketed, tiles_bucketed = padding(32)
    assert tokens_bucketed < tokens / 4
    assert tiles_bucketed < tiles / 4


def test_numbers_out_of_range(single):
    with pytest.raises(RequestError, match="pad_to_multiple is 0"):
        loader_of(single, pad_to_multiple=0)
    with pytest.raises(RequestError, match="image_cache is -1"):
        loader_of(single, image_cache=-1)
    with pytest.raises(RequestError, match="ahead 0"):
        loader_of(single).prefetch(0, 1, ahead=0)
    with pytest.raises(IndexError):
        loader_of(single)[-1]


@pytest.fixture
def different(folder, processor):
    """Four examples in one batch: no image, one, two, and two turns."""
    examples = [
        text_example(),
        image_example("wide.png"),
        example(user(image(), image("wide.png"), text("Which?")), assistant("the first")),
        example(user(image(), text("What?")), assistant("a"), user("Sure?"), assistant("yes")),
    ]
    data = prepare(write_examples(folder / "examples.jsonl", examples), processor)
    return data, validation_loader(data, config_of(pad_to_multiple=64))[0]


def test_shapes_of_a_batch(different):
    data, batch = different
    lengths = [one.length for one in sorted(data.examples, key=lambda e: (e.num_tiles, e.length))]
    assert batch.input_ids.shape == (4, -(-max(lengths) // 64) * 64)
    assert batch.input_ids.dtype == batch.labels.dtype == np.int32
    assert batch.pixel_values.dtype == np.float32
    assert batch.image_masks.shape == batch.pixel_values.shape[:3]
    assert batch.image_input_idx.dtype == np.int32
    assert batch.num_tokens == sum(lengths)
    assert batch.num_targets == np.count_nonzero(batch.loss_mask)
    np.testing.assert_array_equal(batch.loss_mask, batch.labels >= 0)
    assert not batch.loss_mask[:, 0].any()
    padding_token = data.processor.tokenizer.bos_token_id
    for ids, mask, length in zip(batch.input_ids, batch.loss_mask, lengths, strict=True):
        assert np.all(ids[length:] == padding_token)
        assert not mask[length:].any()
    patch = data.processor.tokenizer.image_token_ids.patch
    for ids, positions in zip(batch.input_ids, batch.image_input_idx, strict=True):
        np.testing.assert_array_equal(
            np.sort(positions[positions >= 0]), np.flatnonzero(ids == patch)
        )


def test_examples_of_a_batch_are_computed_as_in_generation(different, tiny):
    data, batch = different
    model, processor = tiny
    logits = np.array(
        model(
            batch.input_ids,
            pixel_values=batch.pixel_values,
            image_masks=batch.image_masks,
            image_input_idx=batch.image_input_idx,
        ).astype(mx.float32)
    )
    asked = [
        [user("How are you?")],
        [user(image("a.png"), text("What?")), assistant("a"), user("Sure?")],
        [user(image("wide.png"), text("What color?"))],
        [user(image("a.png"), image("wide.png"), text("Which?"))],
    ]
    folder = data.sources[0].path.parent
    for index, messages in enumerate(asked):
        for message in messages:
            for part in message["content"]:
                if isinstance(part, dict) and "path" in part:
                    part["path"] = str(folder / part["path"])
        alone = np.array(model(**processor.from_messages(messages)).astype(mx.float32))[0]
        # Sums over other shapes are rounded otherwise.
        np.testing.assert_allclose(logits[index, : len(alone)], alone, atol=1e-3, rtol=1e-3)
        assert batch.loss_mask[index, len(alone)]
        assert not batch.loss_mask[index, len(alone) - 1]


def test_batch_without_images(folder, processor):
    data = prepare(write_examples(folder / "texts.jsonl", [text_example()] * 3), processor)
    batch = loader_of(data, text_fraction=1.0)[0]
    assert batch.pixel_values is batch.image_masks is batch.image_input_idx is None


def test_images_are_cached_up_to_a_limit(mixed, folder):
    plain = loader_of(mixed, text_fraction=0.15)
    expected = [plain[step] for step in range(20)]
    cached = loader_of(mixed, text_fraction=0.15, image_cache=2**24)
    for _ in range(2):
        for step, batch in enumerate(expected):
            assert_same_batch(cached[step], batch)
    config = mixed.processor.image_processor.config
    bytes_of_tile = 4 * config.patch_grid[0] * config.patch_grid[1] * config.patch_values
    tiles = {one.num_tiles for one in mixed.examples if one.images}
    small, large = (count * bytes_of_tile for count in sorted(tiles))
    assert small < large
    assert cached.cached_bytes == small + large
    room = loader_of(mixed, text_fraction=0.15, image_cache=large)
    for step in range(20):
        room[step]
    assert 0 < room.cached_bytes <= large
    for file in folder.glob("*.png"):
        file.unlink()
    assert_same_batch(cached[3], expected[3])
    with pytest.raises(DataError, match="cannot be opened"):
        plain[3]


def test_a_batch_larger_than_memory_is_refused(single):
    loader = loader_of(single, batch_size=2**16, bucket_batches=1)
    loader.data.sizes[:, 0] = 10**6  # as if images were that large
    with pytest.raises(RequestError, match=r"a batch of .* takes .* GB.*; lower batch_size"):
        loader[0]
