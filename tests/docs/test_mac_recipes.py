"""The recipes for a Mac: scripts run as an Automator or a Shortcut would, plists are read."""

import json
import os
import plistlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jvlm_mlx.cli.main import SUBCOMMANDS
from jvlm_mlx.serve import _from_environment
from tests.helpers.processes import wait_for_window

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "jvlm_mlx" / "cli" / "README.md"


def block(beginning):
    """The one block of the document that has this in it."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (text for text in blocks if beginning in text)
    return found


@pytest.fixture
def home(tmp_path):
    """A home folder whose `jvlm` notes what it is called with and what it gets."""
    commands = tmp_path / ".local" / "bin"
    commands.mkdir(parents=True)
    (commands / "jvlm").write_text('#!/bin/sh\nprintf "<%s>" "$@"\nwc -c < /dev/stdin\n')
    (commands / "jvlm").chmod(0o755)
    return tmp_path


def run(script, home, *arguments, **keywords):
    return subprocess.run(
        ["bash", "-e", "-c", script, "bash", *map(str, arguments)],
        cwd=home, env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True, check=True, **keywords,
    ).stdout.decode()  # fmt: skip


def test_a_quick_action_writes_beside_each_file(home):
    files = [home / "a.jpg", home / "my photo.heic"]
    assert run(block('for file in "$@"'), home, *files, stdin=subprocess.DEVNULL) == ""
    for file in files:
        said = Path(f"{file}.txt").read_text()
        assert said.startswith(f"<generate><-i><{file}><-p><Describe the image in one sentence.>")


def test_a_shortcut_sends_its_input(home):
    said = run(block("jvlm generate -i - "), home, input=bytes(1234))
    assert said.split() == ["<generate><-i><-><-p><Read", "the", "text.><--quiet>1234"]


def test_a_shortcut_can_ask_the_server(home):
    """curl gets valid JSON with the image in it; `plutil` is a Mac's."""
    for name, does in (("curl", "cat"), ("plutil", "cat")):
        command = home / name
        command.write_text(f"#!/bin/sh\n{does}\n")
        command.chmod(0o755)
    script = f"PATH={home}:$PATH\n{block('plutil -extract')}"
    request = run(script, home, input=b"pixels" * 50)
    (message,) = json.loads(request)["messages"]
    url = message["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,cGl4ZWxz")


def plists():
    for document in ("jvlm_mlx/cli/README.md", "jvlm_mlx/serving/README.md"):
        for text in re.findall(r"<\?xml.*?</plist>", (ROOT / document).read_text(), re.DOTALL):
            yield plistlib.loads(text.encode())


def test_the_service_is_a_valid_property_list():
    (service,) = (one for one in plists() if "ProgramArguments" in one)
    program, subcommand = service["ProgramArguments"]
    assert Path(program).is_absolute()
    assert subcommand in SUBCOMMANDS
    assert service["Label"] == "local.jvlm"
    assert (service["RunAtLoad"], service["KeepAlive"]) == (True, True)
    assert "model" in _from_environment(service["EnvironmentVariables"])


def test_the_app_opens_its_window(home, display, golden_folder):
    environment = {**display, "JVLM_MODEL": str(golden_folder / "tiny")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-e", "-c", block("Info.plist")], cwd=home, env=environment, check=True)
    contents = home / "Jvlm.app" / "Contents"
    info = plistlib.loads((contents / "Info.plist").read_bytes())
    launcher = contents / "MacOS" / info["CFBundleExecutable"]
    with subprocess.Popen(
        [launcher], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_window(display, process)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said.strip()) == (130, "", "")
