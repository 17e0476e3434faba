"""A benchmark's TSV file: every problem is named before anything runs; images are not held."""

import base64
import csv
import subprocess
import sys

import pytest

from jvlm_mlx.errors import DataError, ImageError
from jvlm_mlx.evaluation.benchmarks import find_benchmark
from jvlm_mlx.evaluation.prompts import prompt_parts
from jvlm_mlx.evaluation.questions import QuestionFile
from tests.helpers.evaluation_files import png, write_tsv

HEADER = b"index\tquestion\tanswer\tA\tB\timage\n"
RED, BLUE = png("red"), png("blue")
CHOICE = {"index": 0, "question": "Which color?", "A": "red", "B": "blue", "answer": "A"}


def open_file(path, benchmark="AI2D_TEST", **options):
    return QuestionFile(path, find_benchmark(benchmark), **options)


def choice(index, image, **cells):
    return {**CHOICE, "index": index, "image": image, **cells}


def test_images_of_every_kind_are_read_where_they_are(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "red one.png").write_bytes(base64.b64decode(RED))
    path = write_tsv(
        tmp_path / "q.tsv",
        [
            choice(7, RED),
            choice(8, 7),  # the image of row 7
            choice(9, f"['{RED}', \"{BLUE}\"]"),
            choice(10, "", image_path="images/red one.png"),
            choice(11, f"[{RED},{BLUE}]"),
            choice(12, BLUE[:40] + "\n" + BLUE[40:]),
        ],
    )

    with open_file(path) as questions:
        images = [questions.images(number) for number in range(len(questions))]

    red, blue = base64.b64decode(RED), base64.b64decode(BLUE)
    assert images[:3] == [[red], [red], [red, blue]]
    assert images[3] == [folder / "red one.png"]
    assert images[4:] == [[red, blue], [blue]]


def test_cells_are_those_of_pandas(tmp_path):
    path = tmp_path / "q.tsv"
    path.write_bytes(
        b"\xef\xbb\xbfindex\tquestion\thint\tA\tB\tanswer\timage\r\n\r\n"
        b'3\t"two\nlines\tand ""quotes"""\tN/A\t1\tx\tA\t' + RED.encode() + b"\r\n"
        b'4\tan "inner" quote\t\t2.5\ty\tB\t3'
    )

    with open_file(path) as questions:
        rows = [questions.row(number) for number in range(2)]

    assert rows[0] == {
        "index": 3,
        "question": 'two\nlines\tand "quotes"',
        "hint": None,
        "A": 1.0,
        "B": "x",
        "answer": "A",
    }
    assert rows[1]["question"] == 'an "inner" quote'


def test_rows_without_an_image_are_left_out_and_counted(tmp_path):
    path = write_tsv(tmp_path / "q.tsv", [choice(1, RED), choice(2, ""), choice(3, BLUE)])

    with open_file(path) as questions:
        assert len(questions) == 2
        assert questions.without_image == 1
        assert questions.images(1) == [base64.b64decode(BLUE)]


BAD_FILES = [
    ([choice(1, RED), choice(1, BLUE)], "line 3, column index: 1 is that of line 2 too"),
    ([choice("", RED)], "line 2, column index: nothing there"),
    ([choice(1, RED[:-5])], "line 2, column image: broken base64"),
    ([choice(1, RED[:30] + "*" + RED[30:])], "column image: broken base64: '*' at character 31"),
    ([choice(1, RED, answer="C")], "line 2, column answer: 'C' is none of the options A, B"),
    ([choice(1, RED, question="")], "line 2, column question: nothing there"),
    ([choice(1, "99")], "line 2, column image: '99' is neither base64 nor an index"),
    ([choice(1, 2), choice(2, 1)], "line 2, column image: row 2 has no image of its own"),
    ([choice(1, "", image_path="no.png")], "no.png does not exist"),
    ([choice(1, "x" * 64 + "!" * 64)], "broken base64: '!' at character 65"),
    ([{"index": 1, "image": RED}], "line 1: no column question, answer, A, B"),
    ([{**CHOICE}], "line 1: no column image (or image_path)"),
    ([], "is empty"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_FILES, ids=[m for _, m in BAD_FILES])
def test_problems_are_named_by_line_and_column(rows, message, tmp_path):
    path = write_tsv(tmp_path / "q.tsv", rows)
    if not rows:
        path.write_bytes(b"")

    with pytest.raises(DataError) as failure:
        open_file(path)

    assert message in str(failure.value)


def test_all_problems_are_listed_at_once_up_to_twenty(tmp_path):
    rows = [choice(n, RED, answer="E") for n in range(30)]

    with pytest.raises(DataError) as failure:
        open_file(write_tsv(tmp_path / "q.tsv", rows))

    lines = str(failure.value).splitlines()
    assert len(lines) == 22
    assert lines[-1].strip() == "and 10 more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"index\tindex\n", "line 1: column index is there twice"),
        (b"index\tquestion\tanswer\tA\tB\timage\n1\tq\tA\ta\tb\tx\ty\n", "line 2: 7 cells under 6"),
        (
            b'index\tquestion\tanswer\tA\tB\timage\n1\t"q\tA\ta\tb\tx\n',
            "line 2: a cell begins with",
        ),
        (b"index\tquestion\tanswer\tA\tB\timage\n\n1\t\xff\n", "line 3: not UTF-8"),
        (b"index\tquestion\tanswer\tA\tB\timage\n1\ta\rb\n", "line 2: new-line character"),
    ],
)
def test_what_is_no_tsv_is_named_by_line(content, message, tmp_path):
    path = tmp_path / "q.tsv"
    path.write_bytes(content)

    with pytest.raises(DataError) as failure:
        open_file(path)

    assert message in str(failure.value)


def test_images_are_checked_by_whoever_will_open_them(tmp_path):
    def refuse(image):
        raise ImageError("no image that can be opened")

    path = write_tsv(tmp_path / "q.tsv", [choice(1, RED)])

    with pytest.raises(DataError, match="line 2, column image: no image that can be opened"):
        open_file(path, check_image=refuse)


def test_rotations_must_be_complete(tmp_path):
    rows = [choice(n, RED if n == 5 else 5) for n in (5, 1_000_005, 6)]
    path = write_tsv(tmp_path / "q.tsv", rows)

    with pytest.raises(DataError, match=r"line 4, column index: question 6: 2 options .*1000006"):
        open_file(path, "MMBench_DEV_EN_V11")
    open_file(path, "MMBench_DEV_EN_V11", allow_missing_rotations=True).close()


def test_a_sample_keeps_rotations_together_and_is_repeatable(tmp_path):
    rows = [choice(n + r * 1_000_000, RED) for n in range(20) for r in range(2)]
    with open_file(write_tsv(tmp_path / "q.tsv", rows), "MMBench_DEV_EN_V11") as questions:
        chosen = questions.sample(10, seed=1)
        again = questions.sample(10, seed=1)
        other = questions.sample(10, seed=2)
        everything = questions.sample(None, seed=1)

    assert chosen == again != other
    assert len(chosen) == 10
    assert all(number + 1 in chosen for number in chosen if number % 2 == 0)
    assert everything == list(range(40))


READING = """
import resource, sys
from pathlib import Path
from jvlm_mlx.evaluation.benchmarks import find_benchmark
from jvlm_mlx.evaluation.questions import QuestionFile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with QuestionFile(Path(sys.argv[1]), find_benchmark("AI2D_TEST")) as questions:
    sizes = {len(questions.images(number)[0]) for number in range(len(questions))}
print(sizes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_file_of_any_size_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "large.tsv"
    cell = base64.b64encode(b"\0" * 3_000_000).decode()
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "question", "answer", "A", "B", "image"])
        writer.writerows([n, "q", "A", "a", "b", cell] for n in range(40))  # 160 MB

    process = subprocess.run(
        [sys.executable, "-c", READING, path], capture_output=True, text=True, check=True
    )

    sizes, grown = process.stdout.rsplit(maxsplit=1)
    assert sizes == "{3000000}"
    assert int(grown) < (60 << 10) * (1024 if sys.platform == "darwin" else 1)


PROMPTS = [
    (
        "AI2D_TEST",
        "paper",
        "Which color?\nA. red\nB. blue\nReturn only the letter of the best answer option",
    ),
    (
        "AI2D_TEST",
        "vlmevalkit",
        "Question: Which color?\nOptions:\nA. red\nB. blue\n"
        "Please select the correct answer from the options above. \n",
    ),
    ("DocVQA_VAL", "paper", "Which color? Respond very briefly."),
    (
        "DocVQA_VAL",
        "vlmevalkit",
        "Which color?\nAnswer the question using a single word or phrase.",
    ),
    ("MME", "vlmevalkit", "Which color?"),
    (
        "MTVQA_TEST",
        "vlmevalkit",
        "Which color?\nAnswer the question using a word or phrase in the language of the question.",
    ),
]


@pytest.mark.parametrize(("benchmark", "style", "text"), PROMPTS)
def test_prompts_of_both_styles(benchmark, style, text):
    assert prompt_parts(find_benchmark(benchmark), CHOICE, 1, style) == [0, text]


def test_a_hint_comes_first():
    row = {**CHOICE, "hint": "Look up."}

    assert prompt_parts(find_benchmark("MMStar"), row, 1, "vlmevalkit")[1].startswith(
        "Hint: Look up.\nQuestion: "
    )


@pytest.mark.parametrize(
    ("benchmark", "question", "images", "parts"),
    [
        ("MMMU_DEV_VAL", "See <image 2> and <image 1>!", 2, ["See ", 1, " and ", 0, "!"]),
        ("MMMU_DEV_VAL", "No place", 1, [0, "No place"]),
        ("MUIRBench", "<image>a<image>b", 2, [0, "a", 1, "b"]),
        ("MUIRBench", "a<image>b", 2, [1, "a", 0, "b"]),
        ("MUIRBench", "a<image>b<image>c", 1, ["a", 0, "b", "c"]),
        ("BLINK", "<image>", 2, [0, 1, "<image>"]),
    ],
)
def test_images_go_where_the_question_says(benchmark, question, images, parts):
    row = {"index": 1, "question": question}

    made = prompt_parts(find_benchmark(benchmark), row, images, "paper")

    assert made[-1] == f"{parts[-1]} Respond very briefly."
    assert made[:-1] == parts[:-1]


def test_an_image_that_is_not_there_is_named():
    row = {"index": 4, "question": "<image 3>"}

    with pytest.raises(DataError, match=r"question 4: says <image 3> and has 2 image"):
        prompt_parts(find_benchmark("MMMU_DEV_VAL"), row, 2, "paper")
