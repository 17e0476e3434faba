"""Examples that several files of training tests learn from."""

import pytest

from tests.helpers.training_examples import (
    image_example,
    prepare,
    text_example,
    write_examples,
    write_image,
    write_mixture,
)


@pytest.fixture(scope="session")
def processor(tiny):
    return tiny[1]


@pytest.fixture
def folder(tmp_path):
    """A folder with the images that examples name."""
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "wide.png", width=300, height=90, seed=1)
    return tmp_path


@pytest.fixture
def mixed(folder, processor):
    """Two sources of images, 3 to 1, and two of text, 1 to 2; examples of many lengths."""
    return prepare(
        write_mixture(
            folder,
            scenes=("captions", 3, [image_example(answer="a " * n) for n in range(1, 31)]),
            pages=("instructions", 1, [image_example("wide.png", "?" * n) for n in range(1, 14)]),
            little=("text", 0.5, [text_example(str(n)) for n in range(5)]),
            much=("text", 1.0, [text_example("long " * n) for n in range(1, 40)]),
        ),
        processor,
    )


@pytest.fixture
def single(folder, processor):
    """24 examples of one source."""
    examples = [image_example(answer="a " * n) for n in range(1, 25)]
    return prepare(write_examples(folder / "examples.jsonl", examples), processor)
