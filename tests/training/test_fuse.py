"""What `fuse` and training must not delete, and what their model cards say."""

import shutil
import signal
import subprocess
import sys

import mlx.core as mx
import pytest
from huggingface_hub import metadata_load

import jvlm_mlx
from jvlm_mlx import fuse
from jvlm_mlx.checkpoint.adapters import AdapterConfig, adapter_parameters, add_adapters
from jvlm_mlx.checkpoint.hub import DEMO, locate_checkpoint
from jvlm_mlx.checkpoint.model_card import trained_card
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.errors import CheckpointError, ConversionError
from jvlm_mlx.training.checkpoints import RUN_FOLDER, step_folder
from tests.helpers.converting import config_of, edit_weights, entries_of


@pytest.fixture(scope="module")
def adapter(grouped, tmp_path_factory):
    """An adapter of one layer that adds nothing."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    folder.mkdir()
    config = AdapterConfig("lora", 2, 2.0, 0.0, ("decoder.layers.0.mlp.up",))
    model, _ = jvlm_mlx.load(grouped)
    add_adapters(model, config, seed=0)
    mx.save_safetensors(str(folder / "adapters.safetensors"), adapter_parameters(model))
    config.write(folder)
    return folder


@pytest.fixture
def existing(grouped, tmp_path):
    """A conversion that is at the target already, alone in its folder."""
    convert(grouped, tmp_path / "targets" / "out")
    return tmp_path / "targets" / "out"


def replace(subcommand, model, adapter, target):
    """Write a checkpoint in a target's place, by either command."""
    if subcommand == "fuse":
        fuse(model, adapter, target, force=True)
    else:
        convert(model, target, force=True)


def all_files(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("place", [".", "adapters", "runs/adapters"])
def test_force_never_deletes_the_adapter(grouped, adapter, existing, place, quantize):
    shutil.copytree(adapter, existing / place, dirs_exist_ok=True)
    before = all_files(existing.parent)
    options = {"quantize": True, "q_group_size": 32} if quantize else {}
    with pytest.raises(ConversionError, match=r"contains the adapter .*; give another path"):
        fuse(grouped, existing / place, existing, force=True, **options)
    assert all_files(existing.parent) == before


def test_an_adapter_that_a_link_leads_to_is_not_deleted(grouped, adapter, existing, tmp_path):
    shutil.copytree(adapter, existing / "adapters")
    (tmp_path / "link").symlink_to(existing / "adapters")
    with pytest.raises(ConversionError, match="contains the adapter"):
        fuse(grouped, tmp_path / "link", existing, force=True)
    assert (existing / "adapters" / "adapters.safetensors").is_file()


def test_force_replaces_a_checkpoint_beside_the_adapter(grouped, adapter, existing):
    fuse(grouped, adapter, existing, force=True, dtype="float16")
    assert config_of(existing)["torch_dtype"] == "float16"
    assert entries_of(existing.parent) == ["out"]


@pytest.mark.parametrize("subcommand", ["fuse", "convert"])
def test_force_never_deletes_a_run(grouped, adapter, existing, subcommand):
    step = step_folder(existing, 20)
    step.mkdir(parents=True)
    (step / "model.safetensors").write_bytes(b"hours of work")
    before = all_files(existing.parent)
    with pytest.raises(ConversionError, match=r"out holds checkpoints of a training") as caught:
        replace(subcommand, grouped, adapter, existing)
    assert "\n" not in str(caught.value)
    assert all_files(existing.parent) == before
    # What is left of a run without any is nothing to resume from.
    shutil.rmtree(step)
    (existing / RUN_FOLDER / "metrics.jsonl").write_text("{}\n")
    convert(grouped, existing, force=True)
    assert RUN_FOLDER not in entries_of(existing)


@pytest.mark.parametrize("target", [".", "..", "../out", "../../targets"])
@pytest.mark.parametrize("subcommand", ["fuse", "convert"])
def test_the_current_folder_is_never_replaced(
    grouped, adapter, existing, monkeypatch, target, subcommand
):
    shutil.copyfile(existing / "config.json", existing.parent / "config.json")
    monkeypatch.chdir(existing)
    before = all_files(existing.parent)
    with pytest.raises(ConversionError, match="the current folder; give another path") as caught:
        replace(subcommand, grouped, adapter, target)
    assert "\n" not in str(caught.value)
    assert all_files(existing.parent) == before


def test_an_empty_current_folder_is_not_replaced_either(grouped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match="the current folder; give another path"):
        convert(grouped, ".")
    convert(grouped, "out")
    assert entries_of(tmp_path) == ["out"]


def test_a_template_that_is_broken_is_not_passed_on(grouped, adapter, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(grouped, source)
    (source / "chat_template.jinja").write_text("{{")
    with pytest.raises(CheckpointError, match="source: the chat template fails"):
        fuse(source, adapter, tmp_path / "targets" / "out")
    assert entries_of(tmp_path) == ["source"]


@pytest.mark.parametrize("quantize", [False, True])
def test_weights_that_are_no_numbers_are_not_passed_on(existing, adapter, tmp_path, quantize):
    edit_weights(existing, lambda tensors: tensors["decoder.norm.weight"].put(0, float("nan")))
    with pytest.raises(CheckpointError, match=r"decoder\.norm\.weight has NaN or infinite values"):
        fuse(existing, adapter, tmp_path / "fused" / "out", quantize=quantize)
    assert entries_of(tmp_path) == ["targets"]


def cached(checkpoint, folder, repository="models--somebody--vlm-2b"):
    """Copy a checkpoint to where the Hub's cache would have it."""
    snapshot = folder / repository / "snapshots" / "0123456789abcdef"
    shutil.copytree(checkpoint, snapshot)
    return snapshot


def test_a_card_names_the_repository(grouped, adapter, tmp_path):
    snapshot = cached(grouped, tmp_path)
    (snapshot / "README.md").write_text(
        "---\nlicense: apache-2.0\nbase_model: another/one\n---\n# Theirs\n"
    )
    folder = fuse(snapshot, adapter, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert "# vlm-2b, fused with adapters" in card
    assert "`somebody/vlm-2b` at revision `0123456789abcdef`, fused with adapters by" in card
    metadata = metadata_load(folder / "README.md")
    assert metadata["base_model"] == "somebody/vlm-2b"
    assert metadata["license"] == "apache-2.0"
    # As a path from the current folder, and through a link.
    (tmp_path / "link").symlink_to(snapshot)
    assert "`somebody/vlm-2b`" in trained_card(tmp_path / "link", "trained further")


def test_a_card_names_the_demo(tmp_path):
    card = trained_card(locate_checkpoint(DEMO), "trained further")
    assert "# demo, trained further" in card
    assert "The weights of `demo`, trained further" in card
    assert "base_model" not in card
    # Another folder of that name is only a folder.
    (tmp_path / "demo" / "checkpoint").mkdir(parents=True)
    assert "# checkpoint, " in trained_card(tmp_path / "demo" / "checkpoint", "trained further")


def test_a_card_names_a_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("---\nbase_model: another/one\n---\n# Mine\n")
    card = trained_card(folder, "trained further")
    assert "# mine, trained further" in card
    assert "base_model: another/one" in card
    # Places that only look like the cache.
    for place in ("models--vlm/snapshots/01", "models--a--b/01", "a--b/snapshots/01"):
        other = tmp_path / place
        other.mkdir(parents=True)
        assert "base_model" not in trained_card(other, "trained further")


def test_a_killed_fuse_leaves_nothing_once_it_has_run_again(grouped, adapter, tmp_path):
    """Neither of the two stages of a quantized result."""
    script = (
        "import os, signal, sys\n"
        "from jvlm_mlx import fuse\n"
        "kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.modules['jvlm_mlx.fuse'].convert = kill\n"
        "fuse(*sys.argv[1:], quantize=True, q_group_size=32)\n"
    )
    target = tmp_path / "targets" / "out"
    arguments = [str(path) for path in (grouped, adapter, target)]
    process = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    assert entries_of(target.parent)
    fuse(grouped, adapter, target, quantize=True, q_group_size=32)
    assert entries_of(target.parent) == ["out"]
    assert {"fused", "converted"}.isdisjoint(entries_of(target))
