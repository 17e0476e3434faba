"""Whatever goes wrong, the target is as it was, and one line says what to do."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from jvlm_mlx import files as files_module
from jvlm_mlx.conversion import converter as conversion_module
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.errors import CheckpointError, ConversionError, JvlmError, RequestError
from tests.helpers.converting import (
    bytes_of,
    config_of,
    edit_config,
    edit_weights,
    entries_of,
    write_grouped,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def existing(tmp_path, golden_folder):
    """A conversion that is at the target already, alone in its folder."""
    convert(golden_folder / "tiny", tmp_path / "targets" / "out")
    return tmp_path / "targets" / "out"


def refused(kind, source, target, message, **options):
    """Expect a refusal in one line, and nothing written."""
    before = bytes_of(target) if target.is_dir() else None
    target.parent.mkdir(parents=True, exist_ok=True)
    entries = entries_of(target.parent)
    with pytest.raises(kind, match=message) as caught:
        convert(source, target, **options)
    assert isinstance(caught.value, JvlmError)
    assert "\n" not in str(caught.value)
    assert entries_of(target.parent) == entries
    assert (bytes_of(target) if target.is_dir() else None) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_by_name(tiny_copy, existing, value):
    name = "model.language_model.layers.2.ffn.down.weight"
    edit_weights(tiny_copy, lambda tensors: tensors[name].put(17, value))
    message = rf"model.safetensors: {name} has NaN or infinite values"
    refused(CheckpointError, tiny_copy, existing, message, force=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_nan_is_found_too(tmp_path, dtype):
    source = write_grouped(tmp_path / "source", dtype=dtype)
    file = source / "model.safetensors"
    data = bytearray(file.read_bytes())
    # All bits set is NaN in both; the end of the file is some tensor's last value.
    data[-2:] = b"\xff\xff"
    file.write_bytes(data)
    refused(CheckpointError, source, tmp_path / "targets" / "out", "has NaN or infinite values")


def test_broken_scales_are_found(golden_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(golden_folder / "tiny-mlx-4bit", source)
    name = "language_model.lm_head.scales"
    edit_weights(source, lambda tensors: tensors[name].put(0, np.nan))
    refused(CheckpointError, source, tmp_path / "targets" / "out", f"{name} has NaN")


def test_broken_8_bit_scales_are_found(grouped, tmp_path):
    source = tmp_path / "source"
    convert(grouped, source, quantize=True, q_mode="mxfp8")
    edit_weights(source, lambda tensors: tensors["lm_head.scales"].put(0, 255))
    refused(CheckpointError, source, tmp_path / "targets" / "out", "lm_head.scales has NaN")


def test_damage_in_layers_that_are_dropped_does_not_matter(tiny_copy, tmp_path):
    edit_weights(
        tiny_copy, lambda tensors: tensors["model.vision_model.post_lnorm.bias"].put(0, np.nan)
    )
    convert(tiny_copy, tmp_path / "out")


def test_values_too_large_for_float16_are_refused(tiny_copy, tmp_path):
    edit_weights(tiny_copy, lambda tensors: tensors["lm_head.weight"].put(0, -70000.0))
    target = tmp_path / "targets" / "out"
    refused(
        CheckpointError, tiny_copy, target, "lm_head.weight has values up to 7e.04, too large",
        dtype="float16",
    )  # fmt: skip
    convert(tiny_copy, target, dtype="bfloat16")


def test_a_missing_shard_is_refused_by_name(tmp_path, existing):
    source = write_grouped(tmp_path / "source", max_shard_bytes=300_000)
    missing = sorted(source.glob("*.safetensors"))[1]
    missing.unlink()
    message = f"has no {missing.name}, which model.safetensors.index.json names"
    refused(CheckpointError, source, existing, message, force=True)


def test_a_truncated_file_is_refused_by_name(tiny_copy, existing):
    file = tiny_copy / "model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    message = "model.safetensors is truncated or no safetensors file"
    refused(CheckpointError, tiny_copy, existing, message, force=True)


def test_a_wrong_shape_is_refused_by_name(tiny_copy, existing):
    def cut(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].copy()

    edit_weights(tiny_copy, cut)
    refused(
        CheckpointError, tiny_copy, existing,
        r"lm_head.weight in model.safetensors has shape \(512, 63\); expected \(512, 64\)",
        force=True,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.bool_])
def test_types_of_no_model_are_refused_by_name(tiny_copy, tmp_path, dtype):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(dtype)

    edit_weights(tiny_copy, change)
    target = tmp_path / "targets" / "out"
    refused(CheckpointError, tiny_copy, target, "lm_head.weight is stored as .*; supported: F32")


def test_whole_numbers_where_weights_belong_are_refused(tiny_copy, tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.uint8)

    edit_weights(tiny_copy, change)
    target = tmp_path / "targets" / "out"
    refused(
        CheckpointError,
        tiny_copy,
        target,
        "lm_head.weight in model.safetensors is stored as U8; expected F32",
    )


def test_a_source_without_tokenizer_is_refused(tiny_copy, tmp_path):
    (tiny_copy / "tokenizer.json").unlink()
    target = tmp_path / "targets" / "out"
    refused(CheckpointError, tiny_copy, target, "has no tokenizer.json")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{", "unexpected '?end of template"),
        ("{% for message in messages %}", "Unexpected end of template"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ raise_exception('no questions, please') }}", "no questions, please"),
        ("{% if messages[0].content[0].type == 'image' %}{{ 1 / 0 }}{% endif %}", "division"),
    ],
)
def test_a_template_that_fails_is_refused(tiny_copy, existing, template, problem):
    (tiny_copy / "chat_template.jinja").write_text(template)
    message = f"tiny: the chat template fails: .*{problem}"
    refused(CheckpointError, tiny_copy, existing, message, force=True)


def test_a_record_that_contradicts_the_weights_is_refused(existing, tmp_path):
    edit_config(existing, lambda config: config["jvlm_mlx"].update(unpadded_mlp_size=999))
    target = tmp_path / "other" / "out"
    refused(CheckpointError, existing, target, "a width of 80 cannot be padded from 999")


@pytest.mark.parametrize(
    "values",
    [
        {"source": None},
        {"source": "\ud800"},
        {"version": 3},
        {"source_bytes": -1},
        {"unpadded_mlp_size": True},
        {"recipe": ["mixed"]},
        {"weight_error": {"tower": "large"}},
        {"quality": {"kl_mean": "low"}},
        {"extra": 1},
    ],
)
def test_a_damaged_record_is_refused(existing, tmp_path, values):
    edit_config(existing, lambda config: config["jvlm_mlx"].update(values))
    message = "jvlm_mlx was not written by this version"
    refused(CheckpointError, existing, tmp_path / "other" / "out", message)


def test_texts_that_are_no_unicode_are_written_as_they_were_spelled(tiny_copy, tmp_path):
    edit_config(tiny_copy, lambda config: config.update(architectures=["\ud800"]))
    convert(tiny_copy, tmp_path / "out")
    assert config_of(tmp_path / "out")["architectures"] == ["\ud800"]


def test_an_existing_target_needs_force(golden_folder, existing):
    message = "out exists already; give another path, or force to replace it"
    refused(ConversionError, golden_folder / "tiny", existing, message)


def test_the_target_is_checked_before_a_download(existing, monkeypatch):
    def download(*_, **__):
        raise AssertionError("gigabytes are on their way")

    monkeypatch.setattr(conversion_module, "locate_checkpoint", download)
    with pytest.raises(ConversionError, match="out exists already"):
        convert("somebody/vlm", existing)


def test_of_two_at_once_one_is_refused(golden_folder, tmp_path):
    """Both before either is ready: the second waits in the first one's progress."""
    target = tmp_path / "targets" / "out"
    refusals = []

    def second(event):
        if not refusals:
            with pytest.raises(ConversionError) as caught:
                convert(golden_folder / "tiny", target)
            refusals.append(str(caught.value))

    convert(golden_folder / "tiny", target, progress=second)
    assert refusals == [
        f"{target} is being written by another process; wait for it, or give another path"
    ]
    assert entries_of(target.parent) == ["out"]


def test_a_conversion_leaves_no_threads(golden_folder, tmp_path):
    def threads():
        tasks = Path("/proc/self/task")  # Linux counts those of libraries, too
        return threading.active_count(), len(list(tasks.iterdir())) if tasks.exists() else None

    options = {"quantize": True, "q_group_size": 32}
    convert(golden_folder / "tiny", tmp_path / "one", **options)  # MLX starts its own, once
    before = threads()
    convert(golden_folder / "tiny", tmp_path / "two", **options)
    assert threads() == before


@pytest.mark.parametrize("name", ["LICENSE", "README.md"])
def test_a_card_that_is_a_link_to_elsewhere_is_not_copied(tiny_copy, tmp_path, name):
    (tmp_path / "secret").write_text("---\nlicense: secret\n---\nmy password")
    (tiny_copy / name).symlink_to(tmp_path / "secret")
    convert(tiny_copy, tmp_path / "out")
    contents = b"".join(bytes_of(tmp_path / "out").values())
    assert b"my password" not in contents
    assert b"license: secret" not in contents


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json"])
def test_a_needed_file_that_is_a_link_to_elsewhere_is_refused(tiny_copy, tmp_path, name):
    (tiny_copy / name).rename(tmp_path / "elsewhere")
    (tiny_copy / name).symlink_to(tmp_path / "elsewhere")
    target = tmp_path / "targets" / "out"
    refused(CheckpointError, tiny_copy, target, f"{name} is a link to elsewhere; put the file")


def test_force_replaces_a_checkpoint_as_a_whole(golden_folder, existing):
    (existing / "left-over.txt").write_text("of the old one")
    convert(golden_folder / "tiny", existing, quantize=True, q_group_size=32, force=True)
    assert "left-over.txt" not in entries_of(existing)
    assert "quantization" in (existing / "config.json").read_text()
    assert entries_of(existing.parent) == ["out"]


def test_force_replaces_its_own_source(existing):
    convert(existing, existing, quantize=True, q_group_size=32, force=True)
    assert "quantization" in (existing / "config.json").read_text()


def test_force_replaces_where_folders_cannot_be_exchanged(golden_folder, existing, monkeypatch):
    monkeypatch.setattr(files_module.ctypes, "CDLL", lambda *_, **__: object())
    convert(golden_folder / "tiny", existing, quantize=True, q_group_size=32, force=True)
    assert "quantization" in (existing / "config.json").read_text()
    assert entries_of(existing.parent) == ["out"]


def test_force_never_deletes_what_is_no_checkpoint(golden_folder, tmp_path):
    target = tmp_path / "targets" / "photos"
    target.mkdir(parents=True)
    (target / "holiday.jpg").write_bytes(b"priceless")
    message = "photos is no checkpoint, so it is not replaced"
    refused(ConversionError, golden_folder / "tiny", target, message, force=True)


def test_force_never_deletes_the_source(golden_folder, tmp_path):
    target = tmp_path / "targets" / "out"
    shutil.copytree(golden_folder / "tiny", target)
    shutil.copytree(golden_folder / "tiny", target / "original")
    with pytest.raises(ConversionError, match="out contains the source"):
        convert(target / "original", target, force=True)
    assert (target / "original" / "model.safetensors").is_file()


def test_a_file_at_the_target_is_refused(golden_folder, tmp_path):
    target = tmp_path / "targets" / "out"
    target.parent.mkdir()
    target.write_text("a file")
    refused(ConversionError, golden_folder / "tiny", target, "out is no folder", force=True)


def test_an_empty_target_is_taken(golden_folder, tmp_path):
    (tmp_path / "targets" / "out").mkdir(parents=True)
    convert(golden_folder / "tiny", tmp_path / "targets" / "out")
    assert entries_of(tmp_path / "targets") == ["out"]


@pytest.mark.parametrize(
    ("force", "message"),
    [(False, "out exists already"), (True, "out is no checkpoint, so it is not replaced")],
)
def test_a_target_that_appears_meanwhile_is_not_replaced(golden_folder, tmp_path, force, message):
    target = tmp_path / "targets" / "out"

    def appear(event):
        if event.stage == "converting" and not target.exists():
            target.mkdir()
            (target / "somebody's").write_text("work")

    with pytest.raises(ConversionError, match=message):
        convert(golden_folder / "tiny", target, progress=appear, force=force)
    assert entries_of(target) == ["somebody's"]
    assert entries_of(target.parent) == ["out"]


def test_free_space_is_checked_first(golden_folder, existing, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files_module.shutil, "disk_usage", lambda _: usage(10, 10, 1_000_000))
    refused(
        ConversionError, golden_folder / "tiny", existing,
        "has 0.00 GB free, but the output needs 0.07 GB", force=True,
    )  # fmt: skip


def test_a_target_is_needed(golden_folder):
    with pytest.raises(RequestError, match="mlx_path is missing"):
        convert(golden_folder / "tiny")


def test_a_dry_run_writes_nothing_and_plans_everything(grouped, tmp_path):
    conversion = convert(grouped, quantize=True, q_group_size=32, recipe="mixed", dry_run=True)
    real = convert(grouped, tmp_path / "out", quantize=True, q_group_size=32, recipe="mixed")
    assert conversion.path is None
    assert conversion.plan == real.plan
    data = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    # Headers are all that the plan does not count.
    assert 0 < data - sum(conversion.plan.output_bytes.values()) < 30_000


def test_ctrl_c_leaves_everything_as_it_was(golden_folder, existing):
    before = bytes_of(existing)

    def interrupt(event):
        if event.stage == "converting" and event.done > event.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(golden_folder / "tiny", existing, quantize=True, force=True, progress=interrupt)
    assert bytes_of(existing) == before
    assert entries_of(existing.parent) == ["out"]


_SLOW = """
import sys, time
from jvlm_mlx.convert import convert

def wait(event):
    if event.stage == "converting" and event.done > event.total / 3:
        print("in the middle", flush=True)
        time.sleep(60)

convert(sys.argv[1], sys.argv[2], quantize=True, force=True, progress=wait)
"""


def test_a_killed_conversion_leaves_the_target_and_the_next_one_clears_up(golden_folder, existing):
    before = bytes_of(existing)
    command = [sys.executable, "-c", _SLOW, golden_folder / "tiny", existing]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "in the middle\n"
        # A conversion that is at work is not taken for an abandoned one.
        message = "out is being written by another process"
        refused(ConversionError, golden_folder / "tiny", existing, message, force=True)
        assert len(entries_of(existing.parent)) == 4
        process.send_signal(signal.SIGKILL)
    assert bytes_of(existing) == before
    (unfinished,) = (entry for entry in existing.parent.iterdir() if entry.suffix == ".writing")
    assert list(unfinished.glob("*.safetensors"))
    assert not (unfinished / "config.json").exists()
    convert(golden_folder / "tiny", existing, force=True)
    assert entries_of(existing.parent) == ["out"]
    assert bytes_of(existing) == before


_SMALL_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
from jvlm_mlx.cli.main import run_subcommand
sys.exit(run_subcommand("convert", sys.argv[1:]))
"""


def test_a_full_disk_leaves_everything_as_it_was(golden_folder, existing):
    before = bytes_of(existing)
    arguments = ["--hf-path", golden_folder / "tiny", "--mlx-path", existing, "--force"]
    process = subprocess.run(
        [sys.executable, "-c", _SMALL_FILES, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr.splitlines() == [f"error: {existing} cannot be written: File too large"]
    assert bytes_of(existing) == before
    assert entries_of(existing.parent) == ["out"]


def test_a_folder_that_cannot_be_written_to_is_refused(golden_folder, tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConversionError, match=r"cannot be written.*Permission denied"):
        convert(golden_folder / "tiny", tmp_path / "out")


def test_conversion_is_fast_enough_to_be_interrupted(golden_folder, tmp_path):
    """Guards the tests above: they rely on several reports of progress."""
    reports = []
    convert(golden_folder / "tiny", tmp_path / "out", progress=reports.append)
    assert {event.stage for event in reports} == {"converting"}
    assert len(reports) > 50
    done = [event.done for event in reports]
    assert done == sorted(done)
    assert done[-1] == reports[0].total
