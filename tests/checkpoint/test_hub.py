"""What the Hub's answers, and its silence, mean to a user: one line each, all different."""

import json
import re
import shutil

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import jvlm_mlx
from jvlm_mlx.checkpoint.hub import locate_checkpoint, origin
from jvlm_mlx.errors import CheckpointError, UnsupportedSettingError


class Response:
    request = None

    def __init__(self, status):
        self.headers, self.status_code = {}, status


def http_error(status, kind=HfHubHTTPError):
    return kind("a page\nof HTML", response=Response(status))


def not_cached(cause):
    error = LocalEntryNotFoundError("nothing in the cache")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (not_cached(http_error(429)), "the Hub refuses more requests for now (HTTP 429)"),
        (not_cached(http_error(500)), "the Hub itself has a problem (HTTP 500); try again later"),
        (not_cached(http_error(504)), "the Hub itself has a problem (HTTP 504); try again later"),
        (not_cached(http_error(403)), "the Hub denies access (HTTP 403)"),
        (not_cached(OfflineModeIsEnabled("no")), "offline mode is on (HF_HUB_OFFLINE)"),
        (OfflineModeIsEnabled("no"), "offline mode is on (HF_HUB_OFFLINE)"),
        (not_cached(ConnectionError("refused")), "the Hub cannot be reached; check the network"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_cannot_be_downloaded_has_its_reason(monkeypatch, error, said):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        locate_checkpoint("someone/model")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("someone/model ")
    assert message.endswith("; the model demo needs no download")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http_error(404, RepositoryNotFoundError), "no folder and no repository someone/model"),
        (http_error(404, RevisionNotFoundError), "someone/model has no revision 'v2'"),
    ],
)
def test_what_is_not_on_the_hub_is_named(monkeypatch, error, said):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=said):
        locate_checkpoint("someone/model", revision="v2")


@pytest.mark.parametrize("name", ["Demo", "DEMO", "demo ", "dmo", "demos"])
def test_the_demo_is_suggested(name):
    with pytest.raises(CheckpointError, match=f"there is no folder {name}; do you mean demo"):
        locate_checkpoint(name)


def test_a_folder_of_another_model_is_named_by_its_type(tmp_path, golden_folder):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    message = r"is another model: config\.json\.model_type = 'llama'; this package runs Jina-VLM"
    with pytest.raises(UnsupportedSettingError, match=message):
        jvlm_mlx.load(tmp_path)


def test_origins(tmp_path):
    snapshot = tmp_path / "models--somebody--vlm" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    assert origin(snapshot) == ("somebody/vlm", "0123")
    assert origin(tmp_path) == (tmp_path.name, None)
    assert origin(locate_checkpoint("demo")) == ("demo", None)
    shutil.rmtree(tmp_path / "models--somebody--vlm")
