"""Pages become one document, in order, with a comment for each."""

import json
from pathlib import Path

import pytest
import skimage
from PIL import Image

import jvlm_mlx
from jvlm_mlx.cli.batch_images import image_requests
from jvlm_mlx.cli.main import main
from jvlm_mlx.errors import ImageError
from jvlm_mlx.processing.documents import expand
from jvlm_mlx.read import PROMPT, objects, transcript
from tests.helpers.pdf_files import many_pages


@pytest.fixture
def pages(tmp_path, golden_folder, monkeypatch):
    """A folder with pages and a current folder beside it."""
    (tmp_path / "scans").mkdir()
    for name, image in (("2.png", "square"), ("1.png", "dot")):
        (tmp_path / "scans" / name).write_bytes(
            (golden_folder / "images" / f"{image}.png").read_bytes()
        )
    (tmp_path / "bad--page.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def read(golden_folder, tiny, monkeypatch):
    monkeypatch.setattr("jvlm_mlx.batch.load_model", lambda *_: tiny)

    def read(*arguments):
        return main(
            ["read", "--model", str(golden_folder / "tiny"), "--max-tokens", "4", *arguments]
        )

    return read


def test_pages_are_transcribed_in_order(tiny, pages, read, golden_folder, capsys):
    assert read("scans", "bad--page.png", "-o", "out.md") == 1
    document = Path("out.md").read_text(encoding="utf-8")
    comments = [line for line in document.splitlines() if line.startswith("<!--")]
    assert comments[::2][:2] == ["<!-- page: scans/1.png -->", "<!-- page: scans/2.png -->"]
    assert comments[1] == "<!-- page ends early (length): scans/1.png -->"
    assert comments[4].startswith("<!-- page: bad- -page.png; not read: 'bad- -page.png' ")
    for name in ("dot", "square"):
        image = golden_folder / "images" / f"{name}.png"
        expected = jvlm_mlx.generate(*tiny, PROMPT, image, max_tokens=4)
        assert f" -->\n\n{expected.text.strip()}\n" in document
    capsys.readouterr()
    assert read("scans", "bad--page.png", "-o", "out.md") == 1
    assert "0 answered, 0 failed, 3 done before (1 of them failed)" in capsys.readouterr().err
    assert Path("out.md").read_text(encoding="utf-8") == document


def test_a_document_on_standard_output(pages, read, monkeypatch, capsysbinary):
    assert read("scans/*.png") == 0
    out, _ = capsysbinary.readouterr()
    assert out.count(b"<!-- page: ") == 2
    assert read("scans/*.png", "-o", "out.md") == 0
    assert Path("out.md").read_bytes() == out
    assert sorted(path.name for path in Path().iterdir()) == [
        "bad--page.png", "out.md", "out.md.jsonl", "scans",
    ]  # fmt: skip


@pytest.fixture
def documents(pages):
    """Files of several pages: a PDF of three, a TIFF of two, and what is none."""
    colors = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    colors[0].save("fax.tif", save_all=True, append_images=colors[1:2])
    colors[0].save("report.pdf", save_all=True, append_images=colors[1:])
    Path("broken.pdf").write_bytes(b"%PDF-1.4 broken")
    return pages


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["report.pdf"], ["report.pdf#1", "report.pdf#2", "report.pdf#3"]),
        (["report.pdf#2-"], ["report.pdf#2", "report.pdf#3"]),
        (["fax.tif", "scans/1.png"], ["fax.tif#1", "fax.tif#2", "scans/1.png"]),
        (["*.pdf"], ["broken.pdf", "report.pdf#1", "report.pdf#2", "report.pdf#3"]),
    ],
)
def test_documents_are_read_page_by_page(documents, read, files, names, capsys):
    pytest.importorskip("pypdfium2")
    assert read(*files, "-o", "out.md") == ("broken.pdf" in names)
    comments = [line for line in Path("out.md").read_text().splitlines() if "<!-- page: " in line]
    assert [
        comment.removeprefix("<!-- page: ").split(";")[0].removesuffix(" -->")
        for comment in comments
    ] == names
    assert ("not read: 'broken.pdf'" in comments[0]) == ("broken.pdf" in names)


def test_a_batch_asks_about_documents_or_their_pages(documents, tiny, golden_folder, monkeypatch):
    pytest.importorskip("pypdfium2")
    monkeypatch.setattr("jvlm_mlx.batch.load_model", lambda *_: tiny)
    command = ["batch", "--model", str(golden_folder / "tiny"), "-m", "2", "-p", "What?",
               "--images", "report.pdf", "-o"]  # fmt: skip
    assert main([*command, "whole.jsonl"]) == 0
    (whole,) = [json.loads(line) for line in Path("whole.jsonl").read_text().splitlines()]
    assert (whole["id"], len(whole["tiles"])) == ("report.pdf", 3)
    assert main([*command, "pages.jsonl", "--per-page"]) == 0
    responses = [json.loads(line) for line in Path("pages.jsonl").read_text().splitlines()]
    assert {one["id"]: len(one["tiles"]) for one in responses} == {
        f"report.pdf#{number}": 1 for number in (1, 2, 3)
    }


def test_long_documents_are_read_whole(tmp_path):
    """A prompt takes a hundred pages at most; here, each is a request of its own."""
    pytest.importorskip("pypdfium2")
    for name, count in (("book.pdf", 150), ("library.pdf", 2001), ("note.pdf", 1)):
        (tmp_path / name).write_bytes(many_pages(count))
    seen = []
    requests = image_requests(
        [str(tmp_path)], "What?", tmp_path, "", per_page=True, progress=seen.append
    )
    names = [Path(str(request.key)).name for request in requests]
    book = [f"book.pdf#{number}" for number in range(1, 151)]
    assert names == [*book, "library.pdf", "note.pdf#1"]
    assert [event[:3] for event in seen] == [("looking for pages", done, 3) for done in (1, 2, 3)]
    (library,) = (request for request in requests if "library" in str(request.key))
    with pytest.raises(ImageError, match="has 2001 pages; at most 100 are opened at once"):
        expand(library.request(tmp_path).images[0])


def test_whole_pages_have_one_comment():
    page = {"row": 1, "id": "a.png", "text": " # Title \n", "finish_reason": "stop"}
    assert transcript([page]).decode() == "<!-- page: a.png -->\n\n# Title\n"


@pytest.fixture
def report(tmp_path, monkeypatch):
    """A scan three times, as the pages of one PDF."""
    pytest.importorskip("pypdfium2")
    monkeypatch.chdir(tmp_path)
    with Image.open(Path(skimage.__file__).parent / "data" / "page.png") as page:
        pages = [page.convert("L")] * 3
    pages[0].save("report.pdf", save_all=True, append_images=pages[1:])
    return Path("report.pdf")


def test_a_scanned_report_has_a_mark_for_each_page(report, read, capsys):
    assert read(str(report), "-o", "out.md") == 0
    assert "3 answered, 0 failed" in capsys.readouterr().err
    lines = Path("out.md").read_text().splitlines()
    assert [line for line in lines if "page: " in line] == [
        f"<!-- page: report.pdf#{number} -->" for number in (1, 2, 3)
    ]
    # Three times the same scan, drawn at the size that the tiles use: three times the same words.
    answers = [json.loads(line) for line in Path("out.md.jsonl").read_text().splitlines()]
    assert len({(one["text"], *one["tiles"]) for one in answers}) == 1


def test_a_scanned_report_by_a_schema(report, read):
    pytest.importorskip("llguidance")
    Path("schema.json").write_text(json.dumps(SCHEMA))
    command = (str(report), "--schema", "schema.json", "-o", "out.jsonl", "--max-tokens", "40")
    assert read(*command) == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["page"] for line in lines] == [f"report.pdf#{number}" for number in (1, 2, 3)]
    assert {line["content"]["kind"] for line in lines} <= {"letter", "bill"}


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["letter", "bill"]}},
    "required": ["kind"],
    "additionalProperties": False,
}


def test_a_schema_makes_an_object_of_each_page(pages, read, capsys):
    pytest.importorskip("llguidance")
    Path("schema.json").write_text(json.dumps(SCHEMA))
    command = (
        "scans",
        "bad--page.png",
        "-o",
        "out.jsonl",
        "--schema",
        "schema.json",
        "--max-tokens",
        "40",
    )
    assert read(*command) == 1
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["page"] for line in lines] == ["scans/1.png", "scans/2.png", "bad--page.png"]
    assert {line["content"]["kind"] for line in lines[:2]} <= {"letter", "bill"}
    assert "is no image" in lines[2]["error"]
    capsys.readouterr()
    Path("schema.json").write_text("[]")
    assert read(*command) == 1
    assert capsys.readouterr().err == "error: schema.json is no JSON Schema: []\n"


def test_an_object_that_ends_early_is_an_error():
    page = {"row": 1, "id": "a.png", "text": '{"kind": "l', "finish_reason": "length"}
    (line,) = objects([page]).splitlines()
    assert json.loads(line)["error"] == 'the object ends early (length): {"kind": "l'
