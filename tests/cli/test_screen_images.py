"""`clipboard:` and `screenshot:`: a Mac's clipboard and screen, played by stand-ins."""

import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageGrab

import jvlm_mlx
from jvlm_mlx import ChatSession
from jvlm_mlx.cli import screen_images as module
from jvlm_mlx.cli.chat_commands import Conversation
from jvlm_mlx.cli.main import main
from jvlm_mlx.cli.screen_images import screen_images
from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.errors import ImageError, JvlmError
from jvlm_mlx.processing.image_io import open_image
from jvlm_mlx.serving.api_error import ApiError
from jvlm_mlx.serving.image_policy import ImagePolicy


def on(monkeypatch, system):
    monkeypatch.setattr(module, "platform", types.SimpleNamespace(system=lambda: system))


@pytest.fixture
def mac(monkeypatch, golden_folder):
    """A Mac with an image on the screen; its clipboard is filled by the test."""

    class Mac:
        copied_file = ""
        """What AppleScript answers when it is asked for a copied file; empty: an error."""
        copied = None
        screen = (golden_folder / "images" / "dot.png").read_bytes()
        """None: the user presses Esc, or has not allowed it."""

    def run(command, **_):
        Mac.commands.append(command)
        if command[0] == "osascript":
            said = f"{Mac.copied_file}\n".encode() if Mac.copied_file else b""
            return subprocess.CompletedProcess(command, not Mac.copied_file, said, b"no furl")
        assert command[0] == "screencapture"
        if Mac.screen is not None:
            Path(command[-1]).write_bytes(Mac.screen)
        return subprocess.CompletedProcess(command, 0, b"", b"")

    Mac.commands = []
    on(monkeypatch, "Darwin")
    monkeypatch.setattr(module, "subprocess", types.SimpleNamespace(run=run))
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: Mac.copied)
    return Mac


def test_a_copied_image_has_a_name_and_its_pixels(mac):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 4), np.uint8)
    mac.copied = Image.fromarray(pixels)
    (found,) = screen_images("clipboard:")
    assert found.name == "the clipboard"
    np.testing.assert_array_equal(np.asarray(open_image(found)), pixels[:, :, :3])


def test_a_copied_file_is_the_file_and_not_its_icon(mac, tmp_path):
    mac.copied = Image.new("RGB", (32, 32), "gray")  # the icon
    photo = tmp_path / "my photo.png"
    photo.touch()
    mac.copied_file = str(photo)
    assert screen_images("clipboard:") == [str(photo)]
    mac.copied_file = "/:What people copied as text"
    (found,) = screen_images("clipboard:")
    assert open_image(found).size == (32, 32)
    mac.copied, mac.copied_file = ["a.png", "b.png"], ""
    assert screen_images("clipboard:") == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("source", "flags"), [("screenshot:", ["-x", "-i"]), ("screenshot:screen", ["-x", "-m"])]
)
def test_a_screenshot_leaves_no_file(mac, golden_folder, source, flags):
    (found,) = screen_images(source)
    (command,) = mac.commands
    assert command[1:-1] == flags
    assert not Path(command[-1]).parent.exists()
    assert found.name == "the screenshot"
    np.testing.assert_array_equal(
        np.asarray(open_image(found)),
        np.asarray(open_image(golden_folder / "images" / "dot.png")),
    )


class Damaged(Image.Image):
    def save(self, *_):
        raise OSError("image file is truncated")


@pytest.mark.parametrize(
    ("source", "copied", "said"),
    [
        ("clipboard:", None, "the clipboard holds no image; copy one, or the file of one, first"),
        ("clipboard:", [], "the clipboard holds no image; copy one, or the file of one, first"),
        ("clipboard:", Damaged(), "the image on the clipboard is damaged: image file is truncated"),
        ("screenshot:", None, "no screenshot was taken; if macOS asks, allow the terminal"),
        ("screenshot:all", None, "'screenshot:all' is not known; expected clipboard:, screenshot:"),
        ("clipboard:2", None, "'clipboard:2' is not known; expected clipboard:, screenshot:,"),
    ],
)
def test_without_an_image_there_is_one_line(mac, source, copied, said):
    mac.copied, mac.screen = copied, None
    with pytest.raises(ImageError) as caught:
        screen_images(source)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_clipboard_that_cannot_be_read(mac, monkeypatch):
    def fail():
        raise ValueError("Odd-length string")

    monkeypatch.setattr(ImageGrab, "grabclipboard", fail)
    with pytest.raises(ImageError, match="the clipboard cannot be read: Odd-length string"):
        screen_images("clipboard:")


def test_a_mac_without_its_commands_is_one_line(monkeypatch):
    on(monkeypatch, "Darwin")
    monkeypatch.setenv("PATH", "/nowhere")
    for source, command in (("clipboard:", "osascript"), ("screenshot:", "screencapture")):
        with pytest.raises(ImageError, match=f"{command} cannot be run: No such file"):
            screen_images(source)


def test_other_systems_say_so(monkeypatch, capsys):
    on(monkeypatch, "Linux")
    assert main(["generate", "--model", "demo", "-i", "screenshot:", "-p", "What?"]) == 1
    assert capsys.readouterr().err == (
        "error: screenshot: works on macOS alone; save the image and give its path\n"
    )


def test_questions_about_the_screen(mac, tiny, golden_folder, capsys):
    image = golden_folder / "images" / "dot.png"
    expected = jvlm_mlx.generate(*tiny, "What?", image, max_tokens=4).text
    model = str(golden_folder / "tiny")
    flags = ["--model", model, "-p", "What?", "--max-tokens", "4", "--quiet"]
    assert main(["generate", "-i", "screenshot:", *flags]) == 0
    assert capsys.readouterr().out == expected + "\n"
    mac.copied = Image.open(image)
    assert main(["generate", "--map", "-i", "clipboard:", str(image), *flags]) == 0
    said = capsys.readouterr()
    assert said.out == 2 * (expected + "\n")
    assert said.err.startswith("== the clipboard: What?\n")


def test_a_chat_shows_what_was_copied(mac, tiny, golden_folder, tmp_path):
    mac.copied = Image.open(golden_folder / "images" / "dot.png")
    session = ChatSession(*tiny, max_tokens=2)
    conversation = Conversation(*tiny, session, {})
    assert conversation.react("/image clipboard: screenshot:").startswith("the clipboard: ")
    assert [image.name for image in conversation.pending] == ["the clipboard", "the screenshot"]
    list(conversation.react("What?")())
    session.save(tmp_path / "talk.session")
    loaded = ChatSession.load(tmp_path / "talk.session", *tiny)
    assert [image.name for image in loaded.images] == ["the clipboard", "the screenshot"]


def test_an_explanation_of_the_screen(mac, golden_folder, tmp_path):
    command = ["explain", "-i", "screenshot:screen", "-p", "What?", "--max-tokens", "1"]
    command += ["--model", str(golden_folder / "tiny"), "-o", str(tmp_path / "out.png")]
    assert main(command) == 0
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize("command", [["batch", "-p", "What?", "--images"], ["read"]])
def test_what_resumes_needs_files(mac, command, tmp_path, capsys):
    assert main([*command, "clipboard:", "-o", str(tmp_path / "out.md"), "--model", "demo"]) == 1
    assert capsys.readouterr().err.startswith("error: clipboard: is another image every time")
    assert not mac.commands
    assert not list(tmp_path.iterdir())


def test_only_the_command_line_looks_at_the_screen(mac, tiny):
    """A text in somebody's program, or in a request that reached a server, opens no clipboard."""
    _, processor = tiny
    mac.copied = Image.new("RGB", (8, 8))
    for source in ("clipboard:", "screenshot:", "screenshot:screen"):
        with pytest.raises(JvlmError, match="cannot be opened: No such file"):
            jvlm_mlx.generate(*tiny, "What?", source)
        for policy in (ImagePolicy(), ImagePolicy(allow_urls=True, folder=Path("/"))):
            part = {"type": "image_url", "image_url": source, "detail": "auto"}
            with pytest.raises(ApiError, match="expected a data URI"):
                policy.open_all(processor, [{"role": "user", "content": [part]}], ImageOptions())
    assert not mac.commands
