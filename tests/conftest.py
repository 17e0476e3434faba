"""Shared by all tests: where the goldens are, and the small checkpoint they were made with."""

import json
import os
from pathlib import Path

# No test may reach the network, and none depends on what a machine has cached.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest

import jvlm_mlx

GOLDEN = Path(__file__).parent / "golden"


class Case:
    """One golden case: what was asked, and what the original implementation gave."""

    def __init__(self, description):
        self.name = description["name"]
        self.texts = description["texts"]
        self.images = [
            [GOLDEN / "images" / f"{name}.png" for name in row] for row in description["images"]
        ]
        self.overrides = description["overrides"]
        with np.load(GOLDEN / f"{self.name}.npz") as stored:
            self.expected = dict(stored)

    def inputs(self, processor):
        return processor(text=self.texts, images=self.images, **self.overrides)


CASES = {
    description["name"]: description
    for description in json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"]
}
IMAGE_CASES = [name for name in CASES if name != "text_only"]


@pytest.fixture(params=list(CASES))
def case(request):
    return Case(CASES[request.param])


@pytest.fixture(params=IMAGE_CASES)
def image_case(request):
    return Case(CASES[request.param])


@pytest.fixture
def named_case():
    return lambda name: Case(CASES[name])


@pytest.fixture(scope="session")
def tiny():
    """Model and processor of the small checkpoint in the original layout."""
    return jvlm_mlx.load(GOLDEN / "tiny")


@pytest.fixture(scope="session")
def golden_folder():
    return GOLDEN
