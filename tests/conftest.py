"""Shared by all tests: where the goldens are, and the small checkpoint they were made with."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

# No test may reach the network, and none depends on what a machine has cached.
os.environ["HF_HUB_OFFLINE"] = "1"

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx

# A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items):
    """Skip tests that are marked `gpu` where there is none."""
    if mx.default_device().type == mx.gpu:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


class Case:
    """One golden case: what was asked, and what the reference implementation gave."""

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


@pytest.fixture(scope="session")
def grouped(tmp_path_factory):
    """A random checkpoint in the original layout, sharded, whose layers fit groups of 32."""
    from tests.helpers.converting import write_grouped

    return write_grouped(tmp_path_factory.mktemp("grouped"), max_shard_bytes=300_000)


@pytest.fixture(scope="session")
def quantizable(tmp_path_factory):
    """The small checkpoint with decoder heads of 32 values, random, so that a cache can be
    quantized."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("heads") / "checkpoint"
    shutil.copytree(GOLDEN / "tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["block_config"]["attn_config"]["head_dim"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    random = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if "language_model.layers" in name and ".attn." in name:
            shape = list(tensor.shape)
            shape[1 if name.endswith("attn.out.weight") else 0] *= 2
            scale = 0 if name.endswith("_b") else 1 if "lnorm" in name else 0.3
            tensors[name] = (scale * random.standard_normal(shape)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return jvlm_mlx.load(folder)


@pytest.fixture(scope="session")
def display():
    """The environment of a process that has a display."""
    pytest.importorskip("tkinter")
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("needs Xvfb")
    reader, writer = os.pipe()
    command = [server, "-displayfd", str(writer), "-screen", "0", "900x700x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as process:
        os.close(writer)
        with os.fdopen(reader) as pipe:
            number = pipe.readline().strip()
        if not number:
            pytest.skip("Xvfb does not start")
        yield {**os.environ, "DISPLAY": f":{number}", "PYTHONPATH": str(Path(__file__).parents[1])}
        process.terminate()
