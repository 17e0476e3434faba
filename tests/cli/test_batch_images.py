"""One prompt for many images: JSON Lines, tables and documents."""

import csv
from pathlib import Path

import pytest

import jvlm_mlx
from jvlm_mlx.cli.main import main
from tests.helpers.batch_files import read


@pytest.fixture
def scans(tmp_path, images):
    folder = tmp_path / "scans"
    for name in ("b.png", "a [1].png", "deep/c.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(images["dot"].read_bytes())
    (folder / "notes.txt").write_text("no image")
    return folder


def ask_images(golden_folder, output, *arguments):
    return main(
        ["batch", "--output", str(output), "--max-tokens", "4", "--model",
         str(golden_folder / "tiny"), *arguments]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["scans/*.png"], ["scans/a [1].png", "scans/b.png"]),
        (["scans/**/*.[pP]*"], ["scans/a [1].png", "scans/b.png", "scans/deep/c.PNG"]),
        (["scans"], ["scans/a [1].png", "scans/b.png", "scans/deep/c.PNG"]),
        (["scans/b.png", "scans/a [1].png", "scans/*.png"], ["scans/a [1].png", "scans/b.png"]),
    ],
)
def test_one_prompt_for_many_images(
    tiny, golden_folder, scans, images, loaded, monkeypatch, patterns, names
):
    monkeypatch.chdir(scans.parent)
    assert ask_images(golden_folder, "out.jsonl", "-p", "What?", "--images", *patterns) == 0
    responses = {one["id"]: one["text"] for one in read(Path("out.jsonl"))}
    expected = jvlm_mlx.generate(*tiny, "What?", images["dot"], max_tokens=4).text
    assert responses == dict.fromkeys(names, expected)


def test_images_are_resumed_and_made_a_table(golden_folder, scans, loaded, monkeypatch, capsys):
    monkeypatch.chdir(scans.parent)
    (scans / "broken.png").write_text("no image")
    flags = ("-p", "What?", "--images", "scans/*.png")
    assert ask_images(golden_folder, "out.csv", *flags) == 1
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["scans/a [1].png", "scans/b.png", "scans/broken.png"]
    assert rows[0]["text"] == rows[1]["text"] != ""
    assert (rows[0]["error"], "broken.png" in rows[2]["error"]) == ("", True)
    table = Path("out.csv").read_bytes()
    Path("out.csv").unlink()
    capsys.readouterr()
    assert ask_images(golden_folder, "out.csv", *flags) == 1
    assert "0 answered, 0 failed, 3 done before (1 of them failed)" in capsys.readouterr().err
    assert Path("out.csv").read_bytes() == table
    (scans / "broken.png").write_bytes((scans / "b.png").read_bytes())
    assert ask_images(golden_folder, "out.csv", *flags, "--retry-errors") == 0
    assert Path("out.csv").read_bytes().count(rows[0]["text"].encode()) == 3
    assert sorted(path.name for path in Path().iterdir()) == ["out.csv", "out.csv.jsonl", "scans"]


def test_a_table_of_something_else_is_not_replaced(golden_folder, scans, monkeypatch, capsys):
    monkeypatch.chdir(scans.parent)
    Path("out.csv").write_text("precious")
    assert ask_images(golden_folder, "out.csv", "-p", "What?", "--images", "scans/*.png") == 1
    assert "out.csv is there, but out.csv.jsonl" in capsys.readouterr().err
    assert Path("out.csv").read_text() == "precious"
    assert not list(Path().glob(".out*"))


def test_a_document_has_a_section_for_each_image(golden_folder, scans, loaded, monkeypatch):
    monkeypatch.chdir(scans.parent)
    assert ask_images(golden_folder, "out.md", "-p", "What?", "--images", "scans/*.png") == 0
    responses = {one["id"]: one["text"].strip() for one in read(Path("out.md.jsonl"))}
    assert Path("out.md").read_text(encoding="utf-8") == "\n".join(
        f"## {name}\n\n{responses[name]}\n" for name in sorted(responses)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a file of requests, or --images and --prompt"),
        (["x.jsonl", "--images", "*"], "give either a file"),
        (["--images", "scans/*.png"], "--images and --prompt belong together"),
        (["x.jsonl", "-p", "What?"], "--images and --prompt belong together"),
        (["-p", "What?", "--images", "scans/*.gif"], "'scans/*.gif' matches no image file"),
        (["-p", "What?", "--images", "~no-such-user/*"], "'~no-such-user/*' cannot be read"),
    ],
)
def test_images_and_prompt_belong_together(
    golden_folder, scans, capsys, monkeypatch, arguments, said
):
    monkeypatch.chdir(scans.parent)
    assert ask_images(golden_folder, "out.jsonl", *arguments) == 1
    assert f"error: {said}" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
