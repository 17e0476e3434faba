"""What is said before weights are read that leave no room, and when memory runs out."""

import logging
import os

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import jvlm_mlx
import jvlm_mlx.chat
from jvlm_mlx.checkpoint.loader import read_config
from jvlm_mlx.checkpoint.reader import CheckpointFiles
from jvlm_mlx.checkpoint.weights import Checkpoint
from jvlm_mlx.cli.main import main
from jvlm_mlx.config.dtypes import ModuleDtypes
from jvlm_mlx.errors import RequestError
from jvlm_mlx.model import Model

OUT_OF_MEMORY = "[metal::malloc] Attempting to allocate 622592000 bytes which is greater than"


@pytest.mark.parametrize("folder", ["tiny", "tiny-mlx-4bit"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "tower=float16,decoder=float32"])
def test_the_size_is_known_before_anything_is_read(golden_folder, folder, dtype):
    path, dtypes = golden_folder / folder, ModuleDtypes.read(dtype)
    checkpoint = Checkpoint.open(CheckpointFiles(path), read_config(path).model)
    model, _ = jvlm_mlx.load(path, dtype=dtype)
    arrays = tree_flatten(model.parameters())
    assert checkpoint.loaded_bytes(dtypes) == sum(array.nbytes for _, array in arrays)


@pytest.fixture
def gpu_memory(monkeypatch):
    """Replace what the system recommends for a GPU, in bytes."""

    def recommend(size):
        monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": size})

    return recommend


def test_weights_that_leave_no_room_are_warned_of_before_they_are_read(
    golden_folder, gpu_memory, monkeypatch, caplog
):
    gpu_memory(100_000)
    events = []
    monkeypatch.setattr(Checkpoint, "build", lambda *_, **__: events.extend(caplog.messages))
    with caplog.at_level(logging.WARNING):
        jvlm_mlx.load(golden_folder / "tiny")
    (warning,) = events
    assert "the system recommends for this GPU" in warning
    assert "100 kB" in warning
    assert "fewer bits" in warning


def test_nothing_stays_of_weights_that_were_converted(golden_folder, monkeypatch):
    events = []
    prepare, clear = Model.prepare, mx.clear_cache
    monkeypatch.setattr(Model, "prepare", lambda model: (events.append("prepare"), prepare(model)))
    monkeypatch.setattr(mx, "clear_cache", lambda: (events.append("clear"), clear()))
    jvlm_mlx.load(golden_folder / "tiny", dtype="bfloat16")
    assert events == ["prepare", "clear"]


def test_weights_that_fit_are_not_mentioned(golden_folder, gpu_memory, caplog):
    gpu_memory(10**9)
    jvlm_mlx.load(golden_folder / "tiny")
    assert caplog.messages == []


def test_a_cpu_has_the_memory_of_its_machine(golden_folder, monkeypatch, caplog):
    monkeypatch.setattr(mx, "device_info", dict)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    jvlm_mlx.load(golden_folder / "tiny")
    (warning,) = caplog.messages
    assert "10.0 kB this machine has" in warning


def test_running_out_of_memory_while_loading_is_one_line(golden_folder, monkeypatch):
    def exhausted(*_):
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr(mx, "eval", exhausted)
    with pytest.raises(RequestError, match="ran out of memory") as caught:
        jvlm_mlx.load(golden_folder / "tiny")
    assert "fewer bits" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError(OUT_OF_MEMORY), "error: the device ran out of memory: lower --max-memory"),
        (MemoryError(), "error: the device ran out of memory"),
    ],
)
def test_a_command_that_runs_out_of_memory_anywhere_says_so(monkeypatch, capsys, error, shown):
    def run(arguments):
        raise error

    monkeypatch.setattr("jvlm_mlx.chat.run", run)
    assert main(["chat"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(shown)
    assert err.count("\n") == 1


def test_other_errors_stay_what_they_are(monkeypatch):
    def run(arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr("jvlm_mlx.chat.run", run)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["chat"])
