"""Text sets: prompts and scores by lm-eval's rules, from the published files."""

import json
import re
from unittest.mock import Mock

import pytest

from jvlm_mlx.errors import DataError
from jvlm_mlx.evaluate import evaluate, run_benchmark, score_predictions
from jvlm_mlx.evaluation import multiple_choice, open_answers
from jvlm_mlx.evaluation.benchmarks import find_benchmark
from jvlm_mlx.evaluation.likelihood import loglikelihood
from jvlm_mlx.evaluation.text_sets import TextSet, read_text_set
from tests.helpers.evaluation_files import write_jsonl

ROWS = {
    "MMLU": {
        "question": " What is 1 + 1? ",
        "subject": "abstract_algebra",
        "choices": ["1", "2", "3", "4"],
        "answer": 1,
    },
    "ARC-C": {
        "id": "Mercury_1",
        "question": "Which is hot?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "HellaSwag": {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "endings": ["is using wrap. [title] Then [step] he rips.", "holds  tiles."],
        "label": "1",
    },
    "GSM-8K": {"question": "2 + 3?", "answer": "2 + 3 = 5\n#### 5"},
    "MMLU-Pro": {
        "question_id": 70,
        "question": "Largest?",
        "options": ["one", "two ", "three"],
        "answer": "C",
        "category": "math",
        "cot_content": "A: Let's think step by step. It is three. The answer is (C).",
    },
}
PROMPTS = {
    "MMLU": "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    "What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
    "What is 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
    "ARC-C": "Question: Which is hot?\nAnswer: fire\n\nQuestion: Which is hot?\nAnswer:",
    "HellaSwag": "Roof shingle removal: A man is sitting on a roof. He holds tiles.\n\n"
    "Roof shingle removal: A man is sitting on a roof. He",
    "GSM-8K": "Question: 2 + 3?\nAnswer: 2 + 3 = 5\n#### 5\n\nQuestion: 2 + 3?\nAnswer:",
    "MMLU-Pro": "The following are multiple choice questions (with answers) about math. Think step"
    ' by step and then finish your answer with "the answer is (X)" where X is the correct letter'
    " choice.\n\n"
    "Question:\nLargest?\nOptions:\nA. one\nB. two\nC. three\nAnswer: Let's think step by step."
    " It is three. The answer is (C).\n\n"
    "Question:\nLargest?\nOptions:\nA. one\nB. two\nC. three\nAnswer: Let's think step by step.",
}


@pytest.mark.parametrize("name", ROWS)
def test_prompts_are_those_of_lm_eval(name, tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", [ROWS[name]])

    text_set = TextSet(path, find_benchmark(name), "", shots=1, examples=path)

    assert text_set.questions[0].parts == [PROMPTS[name]]


def test_endings_are_those_of_lm_eval(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", [ROWS["HellaSwag"]])
    text_set = TextSet(path, find_benchmark("HellaSwag"), "")

    # Brackets go, and of two spaces one.
    assert text_set._texts[0].choices == (" is using wrap.. Then he rips.", " holds tiles.")


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so 5\n#### 5", "5", "5"),
        ("#### 1,234.", "1,234.", "1,234."),
        ("it is $12.50!", "", "$12.50"),
        ("-3 or 4", "", "4"),
        ("#### -7 of 12", "-7", "12"),
        ("none", "", ""),
        ("#### 5\n#### 6", "5", "6"),
    ],
)
def test_numbers_in_answers(text, strict, flexible):
    assert open_answers.number_in(text, strict=True) == strict
    assert open_answers.number_in(text, strict=False) == flexible


@pytest.mark.parametrize(
    ("text", "answer", "strict", "flexible"),
    [
        ("#### 1234", "x\n#### 1,234", True, True),
        ("it is $1,234.", "#### 1234", False, True),
        ("#### 12.0", "#### 12", False, False),
        ("", "#### 3", False, False),
    ],
)
def test_numbers_are_compared_without_marks(text, answer, strict, flexible):
    assert open_answers.numbers_agree(text, answer, strict=True) == strict
    assert open_answers.numbers_agree(text, answer, strict=False) == flexible


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("So the answer is (C).", "C"),
        ("answer is J, or answer is (A)", "J"),
        ("The answer is: B", ""),
        ("answer is K", ""),
    ],
)
def test_letters_in_answers(text, letter):
    assert multiple_choice.letter_in(text) == letter


def score(name, rows, predictions, tmp_path):
    rows = [
        {**row, "index": n, "prediction": said}
        for n, (row, said) in enumerate(zip(rows, predictions, strict=True))
    ]
    return score_predictions(name, write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "o")


def test_acc_and_acc_norm(tmp_path):
    row = {"choices": ["ab", "abcdefgh"], "answer": "B"}
    predictions = ["[-2, -4]", "[-4, -2]", "[-1, -9]"]

    content = score("HellaSwag", [row] * 3, predictions, tmp_path)

    assert content["acc"] == pytest.approx(100 / 3)  # only the second
    assert content["acc_norm"] == pytest.approx(200 / 3)  # -4 / 8 > -2 / 2


def test_gsm8k_is_scored_strictly_and_by_the_last_number(tmp_path):
    row = {"answer": "2 + 3 = 5\n#### 5"}

    content = score("GSM-8K", [row] * 4, ["#### 5", "it is 5", "#### 5 or 6", "6"], tmp_path)

    assert (content["strict-match"], content["flexible-extract"]) == (50, 50)


def test_mmlu_is_reported_by_subject(tmp_path):
    rows = [
        {"choices": ["A", "B"], "answer": "B", "category": subject} for subject in ("a", "a", "b")
    ]

    content = score("MMLU", rows, ["[-2, -1]", "[-1, -2]", "[-3, -2]"], tmp_path)

    assert content["Overall"] == pytest.approx(200 / 3)
    assert (content["a"], content["b"]) == (50, 100)


def test_likelihoods_must_fit_the_choices(tmp_path):
    row = {"choices": ["a", "b"], "answer": "B"}

    with pytest.raises(DataError, match="a list of 2 log-likelihoods"):
        score("ARC-C", [row], ["[-1]"], tmp_path)


def test_choices_are_compared_by_their_likelihoods(tiny, tmp_path):
    rows = [{**ROWS["ARC-C"], "id": f"q{n}", "question": f"Which {n}?"} for n in range(3)]
    path = write_jsonl(tmp_path / "arc.jsonl", rows)

    content = evaluate(*tiny, "ARC-C", path, tmp_path / "out")

    written = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    expected = loglikelihood(
        *tiny,
        [f"Question: Which {n}?\nAnswer:" for n in range(3) for _ in range(2)],
        [" ice", " fire"] * 3,
    )
    found = [number for row in written for number in json.loads(row["prediction"])]
    assert found == pytest.approx(expected, abs=1e-3)
    assert content["run"]["prompts"] == "lm-eval"
    assert {"acc", "acc_norm"} <= content.keys()
    assert (tmp_path / "out/answers.jsonl").read_text().count("\n") == 3
    again = run_benchmark(Mock(), "ARC-C", path, tmp_path / "out")
    assert again == content  # the model was not needed


def test_other_answers_are_generated_until_the_next_question(tiny, tmp_path):
    path = write_jsonl(tmp_path / "gsm.jsonl", [ROWS["GSM-8K"]] * 2)

    content = evaluate(
        *tiny, "GSM-8K", path, tmp_path / "out", shots=1, examples=path, max_tokens=6
    )

    assert set(content) >= {"strict-match", "flexible-extract"}
    assert content["run"]["shots"] == 1


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("MMLU", {"question": "?"}, "line 1: no column choices"),
        ("ARC-C", {**ROWS["ARC-C"], "answerKey": "Z"}, "line 1: no question of ARC-C"),
        ("HellaSwag", {**ROWS["HellaSwag"], "label": ""}, "line 1: no question of HellaSwag"),
        ("GSM-8K", ROWS["GSM-8K"], "shows 5 examples first: give the file of the split"),
    ],
)
def test_what_cannot_be_asked_is_named(name, row, message, tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", [row])
    shots = None if name == "GSM-8K" else 0

    with pytest.raises(DataError, match=re.escape(message)):
        TextSet(path, find_benchmark(name), "", shots=shots)


def test_examples_are_of_the_same_category(tmp_path):
    questions = write_jsonl(tmp_path / "q.jsonl", [ROWS["MMLU"]])
    examples = write_jsonl(tmp_path / "e.jsonl", [{**ROWS["MMLU"], "subject": "law"}])

    with pytest.raises(DataError, match="1 examples are needed of abstract_algebra and 0 are"):
        TextSet(questions, find_benchmark("MMLU"), "", shots=1, examples=examples)


@pytest.mark.parametrize("name", ROWS)
def test_parquet_is_read_like_json_lines(name, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [ROWS[name]]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    write_jsonl(tmp_path / "test.jsonl", rows)
    benchmark = find_benchmark(name)
    found = read_text_set(tmp_path / "test.parquet", benchmark)
    assert found == read_text_set(tmp_path / "test.jsonl", benchmark)
    assert len(found) == 1
    (tmp_path / "test.parquet").write_bytes(b"PAR1 damaged PAR1")
    with pytest.raises(DataError, match="no Parquet file"):
        read_text_set(tmp_path / "test.parquet", benchmark)
