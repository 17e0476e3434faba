"""Predictions from files: read as pandas reads them, scored like the published scorers."""

import json
import re
import sys

import pytest

from jvlm_mlx.errors import DataError, RequestError
from jvlm_mlx.evaluate import score_predictions
from jvlm_mlx.evaluation.cells import list_of
from jvlm_mlx.evaluation.prediction_files import read_rows
from tests.helpers.evaluation_files import SCORING, WRITERS, write_jsonl, write_tsv, write_xlsx

TOLERANCE = 1e-6
QUESTIONS = [
    {
        "index": n,
        "question": f"q{n}",
        "A": "red",
        "B": "blue",
        "answer": "AB"[n % 2],
        "split": "val",
    }
    for n in range(8)
]


def with_index(cases):
    return [{"index": n, **case} for n, case in enumerate(cases)]


def choice_rows():
    return [
        {"index": n, "prediction": case["prediction"], "answer": case["option"] or "B"}
        | case["choices"]
        for n, case in enumerate(SCORING["multiple_choice"])
    ]


RULES = {
    "AI2D_TEST": (
        choice_rows(),
        [float(c["option"] is not None) for c in SCORING["multiple_choice"]],
    ),
    "ChartQA_TEST": (
        with_index(SCORING["chartqa_relaxed"]),
        [float(case["correct"]) for case in SCORING["chartqa_relaxed"]],
    ),
    "DocVQA_VAL": (with_index(SCORING["anls"]), [case["score"] for case in SCORING["anls"]]),
    "TextVQA_VAL": (with_index(SCORING["textvqa"]), [case["score"] for case in SCORING["textvqa"]]),
    "OCRBench": (
        with_index(SCORING["ocrbench"]["rows"]),
        [row["hit"] for row in SCORING["ocrbench"]["rows"]],
    ),
    "MMMU_DEV_VAL": (SCORING["mmmu"]["rows"], SCORING["mmmu"]["hits"]),
}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def scores_of(folder):
    return json.loads((folder / "scores.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("benchmark", RULES)
def test_rows_of_any_file_get_the_published_score(benchmark, kind, tmp_path):
    rows, published = RULES[benchmark]
    path = WRITERS[kind](tmp_path / f"predictions.{kind}", rows)

    score_predictions(benchmark, path, tmp_path / "out")

    written = rows_of(tmp_path / "out")
    assert [row["index"] for row in written] == [row["index"] for row in rows]
    assert [row["score"] for row in written] == pytest.approx(published, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "benchmark", "expected"),
    [
        ("ocrbench", "OCRBench", SCORING["ocrbench"]["scores"]),
        ("mme", "MME", SCORING["mme"]["scores"]),
        ("pope", "POPE", {k: v["Overall"] for k, v in SCORING["pope"]["scores"].items()}),
        ("hallusionbench", "HallusionBench", SCORING["hallusionbench"]["scores"]["Overall"]),
        (
            "mmbench_circular",
            "mmbench_dev_ar",
            {k: 100 * v for k, v in SCORING["mmbench_circular"]["scores"].items()},
        ),
        (
            "mmmu",
            "mmmu_dev_val",
            {k: 100 * v for k, v in SCORING["mmmu"]["scores"]["validation"].items()},
        ),
    ],
)
def test_totals_have_the_published_names_and_scale(name, benchmark, expected, tmp_path):
    path = write_tsv(tmp_path / "p.tsv", with_index(SCORING[name]["rows"]))

    content = score_predictions(benchmark, path, tmp_path / "out")

    assert content == scores_of(tmp_path / "out")
    assert {name: content[name] for name in expected} == pytest.approx(expected, abs=TOLERANCE)
    for figure in expected:
        low, high = content["intervals"][figure]
        assert low <= content[figure] <= high
    assert "| " + next(iter(expected)) in (tmp_path / "out/report.md").read_text("utf-8")


def test_predictions_alone_are_joined_with_the_benchmarks_file(tmp_path):
    data = write_tsv(tmp_path / "AI2D_TEST.tsv", [{**q, "image": "x" * 70} for q in QUESTIONS])
    predictions = write_jsonl(
        tmp_path / "p.jsonl", [{"index": str(n), "prediction": "A"} for n in range(6)]
    )

    content = score_predictions("AI2D_TEST", predictions, tmp_path / "o", data=data)

    assert content["Overall"] == 50
    assert content["run"]["notes"] == ["2 of 8 questions have no prediction and do not count"]


def test_a_judged_benchmark_without_a_judge_says_so(tmp_path):
    path = write_jsonl(
        tmp_path / "p.jsonl", [{"index": 1, "question": "?", "answer": "4", "prediction": "four"}]
    )

    content = score_predictions("MathVista_MINI", path, tmp_path / "out")

    assert "Overall" not in content
    assert "left out" in content["run"]["notes"][0]
    assert "left out" in (tmp_path / "out/report.md").read_text()
    assert rows_of(tmp_path / "out")[0]["score"] is None


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "2"], [1, 2]),
        (["1", ""], [1.0, None]),  # pandas: a gap makes whole numbers decimal
        (["1", "2.50"], [1.0, 2.5]),
        (["1", "x"], ["1", "x"]),
        (["007", "N/A"], [7.0, None]),
        (["None", "null"], [None, None]),
        (["1,200", "5%"], ["1,200", "5%"]),
        (["none", " NA"], ["none", " NA"]),
    ],
)
@pytest.mark.parametrize("kind", ["tsv", "xlsx"])
def test_cells_are_what_pandas_makes_of_them(kind, cells, values, tmp_path):
    rows = [{"answer": cell, "prediction": cell, "key": "k"} for cell in cells]
    read, _ = read_rows(WRITERS[kind](tmp_path / f"p.{kind}", rows))

    assert [row["answer"] for row in read] == values
    assert [row["prediction"] for row in read] == cells  # an answer is taken as it was said


def test_a_workbooks_numbers_gaps_and_escapes(tmp_path):
    path = write_xlsx(
        tmp_path / "p.xlsx",
        [
            {"index": 3, "Answer": 2.5, "prediction": "a_x000D_\nb & <c>"},
            {"index": 4, "Answer": None, "prediction": 5},
        ],
    )

    rows, places = read_rows(path)

    assert rows[0] == {"index": 3, "answer": 2.5, "prediction": "a\r\nb & <c>"}
    assert rows[1] == {"index": 4, "answer": None, "prediction": "5"}
    assert places == ["row 2", "row 3"]


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        ("['a', \"b'\"]", ["a", "b'"]),
        ("[1, 2.50]", ["1", "2.5"]),
        ("[not a list]", ["[not a list]"]),
        ("['a'] or b", ["['a'] or b"]),
        (["x", 1], ["x", "1"]),
        (None, ["nan"]),
        (2.0, ["2.0"]),
        ("[" * 500, ["[" * 500]),
    ],
)
def test_answers_may_be_list_literals(cell, items):
    assert list_of(cell) == items


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "x", "choose a file that ends in .tsv, .jsonl, .xlsx, .parquet"),
        ("p.tsv", "", "has no rows"),
        ("p.tsv", "index\tanswer\n1\tA\n", "no column prediction"),
        ("p.tsv", "index\tprediction\n1\tA\n", "no column answer; give the benchmark's own file"),
        ("p.tsv", "index\tprediction\tanswer\n1\tA\tA\n\n1\tB\tA\n", "line 4, column index: 1 is"),
        ("p.tsv", "index\tprediction\tanswer\n1\tA\tA\n2\tB\tA\t\t\n", "line 3: 5 cells under 3"),
        ("p.tsv", 'index\tprediction\n1\t"A\n', "line 2: a cell begins with"),
        ("p.tsv", b"index\tprediction\n1\t\xff\n", "line 2: not UTF-8 at byte 2"),
        ("p.jsonl", '{"index": 1}\n{', "line 2: not JSON"),
        ("p.jsonl", "[1]", "line 1: not an object"),
        ("p.xlsx", "no zip", "no Excel file that can be read"),
        (
            "p.jsonl",
            '{"index": 1, "prediction": "A", "answer": "A"}\n{"index": "b", "prediction": "A"}',
            "question 'b' has no answer",
        ),
    ],
)
def test_what_cannot_be_scored_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(DataError) as failure:
        score_predictions("AI2D_TEST", path, tmp_path / "out")

    assert message in str(failure.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"choices": []}, "question 7 has 0 choices; 1 to 26"),
        ({"choices": ["x"] * 27, "prediction": str([-1.0] * 27)}, "question 7 has 27 choices"),
        ({"prediction": "[" * 2000}, "question 7: the prediction must be a list of 2 log"),
        ({"prediction": f"[{10**400}, 1]"}, "question 7: the prediction must be a list of 2 log"),
        ({"answer": "AB"}, "question 7: the answer must be a letter, found 'AB'"),
        ({"answer": ""}, "question 7: the answer must be a letter, found ''"),
    ],
)
def test_text_sets_that_cannot_be_scored_are_named(changed, message, tmp_path):
    row = {"index": 7, "choices": ["x", "y"], "answer": "A", "prediction": "[-1.0, -2.0]"}
    write_jsonl(tmp_path / "p.jsonl", [row | changed])
    with pytest.raises(DataError, match=re.escape(message)):
        score_predictions("MMLU", tmp_path / "p.jsonl", tmp_path / "out")


def test_an_unknown_benchmark_is_named_with_the_nearest(tmp_path):
    with pytest.raises(RequestError, match="did you mean DocVQA_VAL"):
        score_predictions("DocVQA", tmp_path / "p.tsv", tmp_path / "out")


@pytest.mark.parametrize("index", ["x", float("inf"), [1]])
def test_rotations_need_whole_numbers(index, tmp_path):
    rows = [{"index": index, "prediction": "A", "answer": "A", "A": "red"}]
    write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=r"rotations of options are given by whole numbers"):
        score_predictions("MMBench_DEV_EN_V11", tmp_path / "p.jsonl", tmp_path / "out")


def test_missing_rotations_and_questions_are_named(tmp_path):
    rows = [row for row in SCORING["mmbench_circular"]["rows"] if row["index"] != 1_000_024]
    path = write_jsonl(tmp_path / "p.jsonl", rows)

    with pytest.raises(DataError, match=r"question 24: 3 options need 3 .*missing: 1000024"):
        score_predictions("MMBench_DEV_EN_V11", path, tmp_path / "out")
    score_predictions("MMBench_DEV_EN_V11", path, tmp_path / "out", allow_missing_rotations=True)

    path = write_jsonl(tmp_path / "mme.jsonl", SCORING["mme"]["rows"][1:])
    with pytest.raises(DataError, match=r"image OCR/0\.png of category OCR has 1 questions"):
        score_predictions("MME", path, tmp_path / "out2")


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match="pip install pyarrow"):
        score_predictions("AI2D_TEST", tmp_path / "p.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
