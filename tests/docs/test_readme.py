"""Runs every example of every README.md as it is written there.

The released weights cannot be part of a test, so a cache of the Hub is laid out in which
`jinaai/jina-vlm` is the small golden checkpoint. Everything else is as a reader would have it: a
clone as working directory, and photos of that reader.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import skimage

from jvlm_mlx.cli.main import main

ROOT = Path(__file__).parents[2]
PHOTOS = Path(skimage.__file__).parent / "data"

# What the continuous integration runs itself, around these tests.
RUN_ELSEWHERE = (
    "ruff",
    "pip install",
    "python3 -m venv",
    "python -m pytest",
    ".ci/run",
    "git clone",
)


DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for folder in (".", ".github", "benchmarks", "convert", "jvlm_mlx")
    for path in (ROOT / folder).glob("*.md" if folder in (".", ".github") else "**/README.md")
)
TRAINING = Path("benchmarks/demo_model/TRAINING.md")  # its commands take hours


def examples():
    """Yield (document:line, language, text) of every code block of every document."""
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: block.start()].count("\n") + 1
            yield f"{document}:{line}", block.group(1), block.group(2)


EXAMPLES = list(examples())


@pytest.fixture
def clone(tmp_path):
    """A working directory like a clone, with a reader's photos in it; each example has its own."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("tests", "convert", "benchmarks", "jvlm_mlx", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for name, photo in (("photo.jpg", "coffee.png"), ("page.png", "page.png")):
        (folder / name).symlink_to(PHOTOS / photo)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a reader who has downloaded the model before."""
    cache = tmp_path_factory.mktemp("cache")
    repository = cache / "hub" / "models--jinaai--jina-vlm"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(ROOT / "tests" / "golden" / "tiny")
    scripts = Path(sys.executable).parent
    return {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def test_there_are_examples_of_both_kinds():
    assert {"sh", "python"} <= {language for _, language, _ in EXAMPLES}


@pytest.mark.parametrize(
    ("language", "text"),
    [
        pytest.param(language, text, id=place)
        for place, language, text in EXAMPLES
        if language in ("sh", "python")
    ],
)
def test_example(clone, environment, language, text):
    if language == "sh":
        lines = [line for line in text.splitlines() if not line.startswith(RUN_ELSEWHERE)]
        arguments = ["bash", "-e", "-o", "pipefail", "-c", "\n".join(lines)]
    else:
        arguments = [sys.executable, "-W", "error", "-c", text]
    finished = subprocess.run(
        arguments,
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr


def test_every_block_is_run_or_is_output():
    assert {language for _, language, _ in EXAMPLES} <= {"sh", "python", "text", "json", "xml"}


def test_the_first_answer_is_the_promised_one(tmp_path, capsys):
    text = (ROOT / "README.md").read_text()
    (promised,) = re.findall(r"^The answer is `(.*)`\.", text, re.MULTILINE)
    (question,) = re.findall(r'--model demo -i demo\.png -p "(.*)"$', text, re.MULTILINE)
    image = str(tmp_path / "demo.png")
    assert main(["demo", "--output", image]) == 0
    capsys.readouterr()
    assert main(["generate", "--model", "demo", "-i", image, "-p", question, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{promised}\n"


def test_installing_works_where_the_system_refuses_packages():
    """Homebrew's and Debian's Python take none outside of an environment."""
    text = (ROOT / "README.md").read_text()
    blocks = (block for place, _, block in EXAMPLES if place.startswith("README.md:"))
    (first, *_) = (block for block in blocks if "pip install" in block)
    assert first.index("-m venv") < first.index("activate") < first.index("pip install")
    assert "`uv tool install .`" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [one.partition("#")[0] for one in targets if not re.match(r"https?://|#", one)]
    missing = [one for one in local if one and not (ROOT / document).parent.joinpath(one).exists()]
    assert missing == []


@pytest.mark.parametrize("document", [*DOCUMENTS, TRAINING], ids=str)
def test_modules_that_are_named_exist(document):
    text = (ROOT / document).read_text()
    files = re.findall(r"`([\w/]+\.py)`", text)
    modules = re.findall(r"python -m ((?:jvlm_mlx|benchmarks|convert|tests)[\w.]*)", text)
    paths = [*files, *(name.replace(".", "/") for name in modules)]
    missing = [
        path
        for path in paths
        if not any(
            (ROOT / room / name).exists()
            for room in ("", "jvlm_mlx")
            for name in (path, f"{path}.py")
        )
    ]
    assert missing == []
