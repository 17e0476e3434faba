"""The terminal: `python -m convert`, its subcommands, uploads, and the model card."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import metadata_load
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from jvlm_mlx.cli.main import EXIT_ERROR, EXIT_OK, run_subcommand
from jvlm_mlx.conversion.converter import convert
from jvlm_mlx.convert import EXIT_VIOLATION
from jvlm_mlx.errors import ConversionError, RequestError
from tests.helpers.converting import bytes_of, config_of, entries_of, write_grouped

ROOT = Path(__file__).parents[2]


def run(capsys, *arguments):
    code = run_subcommand("convert", [str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("module", ["convert", "jvlm_mlx.convert"])
def test_the_modules_convert(module, golden_folder, tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", module, "--hf-path", golden_folder / "tiny",
         "--mlx-path", tmp_path / "out", "-q", "--q-group-size", "32", "--recipe", "mixed"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == EXIT_OK
    assert f"written: {tmp_path / 'out'}" in process.stdout
    assert "tower's MLP: 80 padded to 96" in process.stdout
    # The notice, once per kind of layer, and no progress bar where no one is watching.
    (notice,) = process.stderr.splitlines()
    assert notice.startswith("30 layers are not quantized")
    assert "vision_tower.layers.*.attention.qkv" in notice


def test_flags_are_the_functions_arguments(grouped, tmp_path, capsys):
    flags = ["--q-bits", 3, "--q-group-size", 32, "--recipe", "mixed", "--dtype", "bfloat16"]
    paths = ["--hf-path", grouped, "--mlx-path", tmp_path / "flags"]
    assert run(capsys, *paths, "-q", *flags)[0] == EXIT_OK
    convert(
        grouped, tmp_path / "arguments", quantize=True,
        q_bits=3, q_group_size=32, recipe="mixed", dtype="bfloat16",
    )  # fmt: skip
    assert bytes_of(tmp_path / "flags") == bytes_of(tmp_path / "arguments")


def test_every_flag_arrives(monkeypatch, capsys):
    given = {}

    def note(source, target, **options):
        given.update(options, source=source, target=target)
        raise RequestError("that will do")

    monkeypatch.setattr(sys.modules["jvlm_mlx.convert"], "convert", note)
    run(
        capsys, "--hf-path", "a/b", "--mlx-path", "out", "--revision", "v1", "--dtype", "float16",
        "--quantize", "--q-bits", 5, "--q-group-size", 128, "--q-mode", "mxfp8", "--recipe",
        "mixed", "-d", "--quant-predicate", "mixed_4_6", "--upload-repo", "c/d", "--dry-run",
        "--force", "--quiet",
    )  # fmt: skip
    assert given.pop("progress") is not None
    assert given == {
        "source": "a/b", "target": Path("out"), "revision": "v1", "dtype": "float16",
        "quantize": True, "q_bits": 5, "q_group_size": 128, "q_mode": "mxfp8", "recipe": "mixed",
        "quant_predicate": "mixed_4_6", "dequantize": True, "upload_repo": "c/d",
        "dry_run": True, "force": True, "show_progress": False,
    }  # fmt: skip


def test_the_folder_is_mlx_model_by_default(grouped, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, out, _ = run(capsys, "--hf-path", grouped)
    assert (code, out.splitlines()[-1]) == (EXIT_OK, "written: mlx_model")
    assert entries_of(Path.cwd()) == ["mlx_model"]


def test_a_quant_predicate_is_a_recipe_with_its_bits(grouped, tmp_path):
    options = {"quantize": True, "q_group_size": 32}
    convert(grouped, tmp_path / "one", quant_predicate="mixed_4_6", **options)
    convert(grouped, tmp_path / "two", recipe="mixed", q_bits=4, **options)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_a_dry_run_prints_the_plan(grouped, tmp_path, capsys):
    convert(grouped, tmp_path / "half", dtype="float16")
    code, out, _ = run(
        capsys, "--hf-path", tmp_path / "half", "-q", "--q-group-size", 32, "--dry-run"
    )
    assert code == EXIT_OK
    # The source's own conversion has an error on record, which is none of this one.
    assert "error" not in out
    shutil.rmtree(tmp_path / "half")
    assert out.splitlines()[-1] == "nothing was written"
    assert out.splitlines()[2].split()[0] == "tower"
    assert entries_of(tmp_path) == []


def test_mistakes_are_one_line(grouped, tmp_path, capsys):
    for arguments, message in (
        (["--hf-path", grouped, "-q", "--quant-predicate", "mixed_3_6"],
         "no recipe means the same as quant-predicate 'mixed_3_6'; use mixed_4_6, or recipe"),
        (["--hf-path", grouped, "-q", "--quant-predicate", "mixed_4_6", "--q-bits", 4],
         "--quant-predicate gives recipe and --q-bits"),
        (["--hf-path", grouped, "--mlx-path", tmp_path / "out", "--recipe", "mixed"],
         "recipe is for quantization; add quantize (-q), too"),
        (["--hf-path", tmp_path / "nowhere", "--mlx-path", tmp_path / "out"], "there is no folder"),
        (["inspect", tmp_path / "nowhere"], "there is no folder"),
        (["verify", grouped, tmp_path / "nowhere"], "there is no folder"),
    ):  # fmt: skip
        code, out, error = run(capsys, *arguments)
        assert (code, out) == (EXIT_ERROR, "")
        (line,) = error.splitlines()
        assert message in line
    assert entries_of(tmp_path) == []


def test_verify_and_inspect(grouped, tmp_path, capsys):
    convert(grouped, tmp_path / "out", quantize=True, q_group_size=32)
    code, out, error = run(capsys, "verify", grouped, tmp_path / "out", "--weights-only")
    assert (code, error) == (EXIT_OK, "")
    assert out.splitlines()[0].split() == ["module", "weight", "error", "largest", "in"]
    code, out, error = run(
        capsys, "verify", grouped, tmp_path / "out", "--prompts", "What?", "--max-tokens", 2,
        "--max-weight-error", 0.02, "--min-top1", 0, "--json", "--update-card",
    )  # fmt: skip
    assert code == EXIT_VIOLATION
    assert error.startswith("bound exceeded: weight error of")
    content = json.loads(out)
    assert content["bounds"]["max_weight_error"] == 0.02
    assert content["answers"][0]["tokens"] == 2
    assert config_of(tmp_path / "out")["jvlm_mlx"]["quality"]["tokens"] == 2
    code, out, error = run(capsys, "inspect", tmp_path / "out")
    assert (code, error) == (EXIT_OK, "")
    assert out.startswith(f"{tmp_path / 'out'}: own layout, 1 weight files\n")
    code, out, error = run(capsys, "inspect", grouped, "--json")
    assert json.loads(out)["layout"] == "original"


def test_the_card_keeps_license_and_languages(tmp_path):
    source = write_grouped(tmp_path / "source")
    (source / "README.md").write_text(
        "---\nlicense: cc-by-nc-4.0\nlanguage:\n- en\n- de\ntags:\n- theirs\n---\n# Theirs\n"
    )
    convert(source, tmp_path / "out", quantize=True, q_group_size=32)
    metadata = metadata_load(tmp_path / "out" / "README.md")
    assert metadata["license"] == "cc-by-nc-4.0"
    assert metadata["language"] == ["en", "de"]
    assert metadata["library_name"] == "mlx"
    assert "theirs" not in metadata["tags"]
    # Of a folder nobody knows where on the Hub it comes from.
    assert "base_model" not in metadata
    # Also where no value changes: what the source's card says of its files is not so here.
    convert(source, tmp_path / "plain")
    assert "# Theirs" not in (tmp_path / "plain" / "README.md").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| weights | affine, 4 bits in groups of 32; the rest F32 |" in card
    assert "| decoder |" in card


def test_a_card_that_cannot_be_read_is_no_obstacle(tmp_path, caplog):
    source = write_grouped(tmp_path / "source")
    (source / "README.md").write_text("---\n{ no: yaml: at all\n---\n")
    convert(source, tmp_path / "out")
    assert "README.md is not read" in caplog.text


def test_a_repository_is_named_with_its_revision(golden_folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.parent.mkdir()
    snapshot.symlink_to(golden_folder / "tiny")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    convert("somebody/vlm", tmp_path / "out", revision="main", quantize=True, q_group_size=32)
    record = config_of(tmp_path / "out")["jvlm_mlx"]
    assert (record["source"], record["revision"]) == ("somebody/vlm", "0123abcd")
    metadata = metadata_load(tmp_path / "out" / "README.md")
    assert metadata["base_model"] == "somebody/vlm"
    assert metadata["base_model_relation"] == "quantized"
    assert "`somebody/vlm` at revision `0123abcd`" in (tmp_path / "out" / "README.md").read_text()


def test_a_source_in_the_cache_is_named_by_its_repository(grouped, tmp_path):
    snapshot = tmp_path / "models--somebody--vlm" / "snapshots" / "0123abcd"
    shutil.copytree(grouped, snapshot)
    convert(snapshot, tmp_path / "out")
    record = config_of(tmp_path / "out")["jvlm_mlx"]
    assert (record["source"], record["revision"]) == ("somebody/vlm", "0123abcd")
    metadata = metadata_load(tmp_path / "out" / "README.md")
    assert metadata["base_model"] == "somebody/vlm"


class FakeHub:
    """In place of the Hub: notes what is asked of it, or refuses."""

    calls: tuple = ()
    refusal = None

    def create_repo(self, repo_id, **options):
        self._note("create", repo_id, options)

    def upload_folder(self, folder_path, repo_id, **options):
        self._note("upload", repo_id, {"files": entries_of(Path(folder_path))} | options)

    def _note(self, *call):
        if FakeHub.refusal:
            raise FakeHub.refusal
        FakeHub.calls += (call,)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", ())
    monkeypatch.setattr(FakeHub, "refusal", None)
    return FakeHub


def test_upload(grouped, tmp_path, hub):
    convert(grouped, tmp_path / "out", upload_repo="me/vlm-mlx")
    (create, upload) = hub.calls
    assert create == ("create", "me/vlm-mlx", {"repo_type": "model", "exist_ok": True})
    assert upload[:2] == ("upload", "me/vlm-mlx")
    assert upload[2]["files"] == entries_of(tmp_path / "out")


def http_error(status):
    class Response:
        request = None
        status_code = status

        def __init__(self):
            self.headers = {}

    return HfHubHTTPError("no\nsorry", response=Response())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http_error(403), "the Hub denies access (HTTP 403)"),
        (http_error(429), "the Hub refuses more requests for now (HTTP 429)"),
        (http_error(500), "the Hub itself has a problem (HTTP 500); try again later"),
        (OfflineModeIsEnabled("offline"), "offline mode is on (HF_HUB_OFFLINE)"),
        (LookupError("of the HTTP library"), "the Hub cannot be reached (of the HTTP library)"),
    ],
)
def test_an_upload_that_fails_leaves_the_conversion(
    grouped, tmp_path, hub, monkeypatch, error, said
):
    monkeypatch.setattr(hub, "refusal", error)
    message = f"out is complete, but cannot be uploaded to me/vlm: {said}"
    with pytest.raises(ConversionError, match=re.escape(message)) as caught:
        convert(grouped, tmp_path / "out", upload_repo="me/vlm")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_name_that_is_no_repository_is_refused_first(grouped, tmp_path, hub):
    with pytest.raises(RequestError, match="upload_repo"):
        convert(grouped, tmp_path / "out", upload_repo="not/a/name")
    assert entries_of(tmp_path) == []
