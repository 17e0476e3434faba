"""Every rule against the published scorers' results; and the results notice every change of one."""

import re
from unittest.mock import Mock

import pytest

from jvlm_mlx.evaluation import multiple_choice, open_answers, scoring, totals
from jvlm_mlx.evaluation.benchmarks import find_benchmark
from jvlm_mlx.evaluation.cells import list_of
from tests.helpers.evaluation_files import SCORING

TOLERANCE = 1e-6

OPTIONS = {"A": "a red ball", "B": "two cats", "C": "2.5", "D": "None of these"}
CHOICES = [
    ("", None),
    ("nan", None),
    ("B", "B"),
    ("b", None),  # options are capitals, articles are not
    ("(B).", "B"),
    ("B or C", None),
    ("B B B", "B"),
    ("Z", "Z"),
    ("B, surely and without any doubt at all", None),  # more than four tokens follow
    ("B is what I would say", None),
    ("say B is what I", "B"),  # three follow
    ("The correct answer is **b** as anyone can see in the middle of it", "B"),
    ("the ANSWER  IS dubious, I would rather not say anything about that", "D"),
    ("two cats", "B"),
    ("I see TWO CATS", "B"),
    ("a red ball and two cats", None),
    ("2.5", "C"),
    ("two cats " + "x" * 66, None),  # longer than twice all options together
    ("Sorry, I can't help with images of people yet. B", "Z"),
    ("Failed to obtain answer via API: B", None),
]
"""What an answer to a question with OPTIONS names."""
NUMBERS = [
    ("95", "100", 1),
    ("94.9", "100", 0),
    ("-100", "100", 0),
    ("50%", "0.5", 1),
    ("50", "0.5", 0),
    ("50%%", "0.5", 1),
    ("1,200", "1200", 0),  # no number, so compared as text
    ("0.0", "0", 0),
    ("0", "0", 1),
    ("1_000", "1000", 1),  # as Python reads numbers
    ("nan", "nan", 0),
    ("inf", "inf", 0),
    (" Paris ", "paris", 1),
    ("Paris", " paris", 0),  # only the prediction is stripped
    ("", "", 1),
    ("%", "%", 1),
    ("2.5 million", "2.5", 0),
]
"""Prediction, answer, and whether they agree by ChartQA's rule."""
SIMILARITIES = [
    ("", [""], 1),
    ("", ["x"], 0),
    (
        "Hello  World",
        ["hello world"],
        11 / 12 + 1 / 12,
    ),  # spaces collapse, the raw length counts
    ("ab", ["abcd"], 0.5),
    ("ab", ["abcde"], 0),
    ("straße", ["strasse"], 1 - 2 / 7),
    ("ßß", ["ßx"], 0.75),  # the length is that of SSSS
    ("北京", ["北京市"], 2 / 3),
    ("x", [], 0),
]
"""Prediction, answers and score by DocVQA's rule."""
FURTHER_CASES = {
    "multiple_choice": [
        {"prediction": answer, "choices": OPTIONS, "option": option} for answer, option in CHOICES
    ],
    "chartqa_relaxed": [
        {"prediction": said, "answer": answer, "correct": bool(score)}
        for said, answer, score in NUMBERS
    ],
    "anls": [
        {"prediction": said, "answer": answers, "score": float(score)}
        for said, answers, score in SIMILARITIES
    ],
    "textvqa": [
        {"prediction": "Cat!", "answer": ["cat"] * 3 + ["dog"] * 7, "score": 0.9},
        {"prediction": "Two.", "answer": ["2"] * 10, "score": 1.0},
        {"prediction": "dont", "answer": ["don't"] * 10, "score": 1.0},
        {"prediction": "", "answer": ["cat"], "score": 0.0},
        {"prediction": "cat", "answer": ["cat"], "score": 0.0},  # no other answer agrees
    ],
    "yes_no": [
        {"prediction": said, "extracted": extracted}
        for said, extracted in [
            ("", "Unknown"),
            ("nan", "Unknown"),
            ("Yes.", "Yes"),
            ("YES, it is", "Yes"),
            ("no-one", "No"),
            ("yes/no", "Unknown"),
            ("not", "Unknown"),
            ("No, yes", "Unknown"),
        ]
    ],
}
"""Edges that the published scorers' cases do not reach."""


# From a case to the rule's result and the published one.
CASE_RULES = {
    "multiple_choice": lambda case: (
        multiple_choice.option_of(
            case["prediction"], {letter: str(text) for letter, text in case["choices"].items()}
        ),
        case["option"],
    ),
    "yes_no": lambda case: (open_answers.yes_or_no(case["prediction"]), case["extracted"]),
    "chartqa_relaxed": lambda case: (
        open_answers.relaxed_accuracy(case["prediction"], list_of(case["answer"])),
        float(case["correct"]),
    ),
    "anls": lambda case: (
        open_answers.anls(case["prediction"], list_of(case["answer"])),
        case["score"],
    ),
    "textvqa": lambda case: (
        open_answers.vqa_accuracy(case["prediction"], list_of(case["answer"])),
        case["score"],
    ),
}
SET_BENCHMARKS = {
    "ocrbench": "OCRBench",
    "mme": "MME",
    "pope": "POPE",
    "hallusionbench": "HallusionBench",
    "mmbench_circular": "MMBench_DEV_EN_V11",
    "mmmu": "MMMU_DEV_VAL",
}


def wrong_cases(rule, cases):
    results = ((case, *CASE_RULES[rule](case)) for case in cases)
    return [
        (case, result, published)
        for case, result, published in results
        if (
            abs(result - published) > TOLERANCE
            if isinstance(published, float)
            else result != published
        )
    ]


def flat(value, prefix=""):
    """Return figures by their path, whether floats or totals."""
    if isinstance(value, dict):
        return {
            k: v for name, part in value.items() for k, v in flat(part, f"{prefix}/{name}").items()
        }
    return {prefix: getattr(value, "value", value)}


def wrong_figures(name, golden):
    """Return rows and figures that are not the published ones."""
    benchmark = find_benchmark(SET_BENCHMARKS[name])
    questions = [scoring.score(benchmark, row, row["prediction"]) for row in golden["rows"]]
    if benchmark.circular:
        questions = scoring.score_rotations(questions)
    hits = golden.get("hits", [row.get("hit") for row in golden["rows"]])
    if isinstance(hits, dict):
        scores = {str(q.row["index"]): q.score for q in questions}
        wrong = [index for index, hit in hits.items() if scores[index] != hit]
    else:
        pairs = zip(questions, hits, strict=True)
        wrong = [q.row for q, hit in pairs if hit is not None and q.score != hit]
    result = scoring.add_up(benchmark, questions)
    figures = flat(result.named) | flat(result.splits)
    fractions = name in ("mmbench_circular", "mmmu")
    for path, figure in flat(golden["scores"]).items():
        published = 100 * figure if fractions else figure
        if abs(figures.get(path, float("inf")) - published) > TOLERANCE:
            wrong.append((path, figures.get(path), published))
    return wrong


@pytest.mark.parametrize("rule", CASE_RULES)
def test_rules_give_the_published_scorers_results(rule):
    assert wrong_cases(rule, SCORING[rule] + FURTHER_CASES[rule]) == []


@pytest.mark.parametrize("name", SET_BENCHMARKS)
def test_figures_are_those_of_the_published_scorers(name):
    assert wrong_figures(name, SCORING[name]) == []


MUTATIONS = [
    ("multiple_choice", multiple_choice, "_LAST_TOKENS", 4),
    ("multiple_choice", multiple_choice, "_REFUSALS", ()),
    ("multiple_choice", multiple_choice, "_ANSWER_IS", re.compile("(?!)")),
    ("multiple_choice", multiple_choice, "_PUNCTUATION_TO_SPACE", {}),
    ("multiple_choice", multiple_choice, "NONE_OF_THEM", "Y"),
    ("multiple_choice", multiple_choice, "_by_text", Mock(return_value=None)),
    ("yes_no", open_answers, "without_punctuation", str),
    ("chartqa_relaxed", open_answers, "_MAX_RELATIVE_CHANGE", 0.04),
    ("chartqa_relaxed", open_answers, "_MAX_RELATIVE_CHANGE", 0.08),
    ("chartqa_relaxed", open_answers, "_number", Mock(return_value=None)),
    ("anls", open_answers, "_MIN_SIMILARITY", 0.6),
    ("anls", open_answers, "_MIN_SIMILARITY", 0.4),
    ("anls", open_answers, "edit_distance", lambda a, b: float(a != b)),
    ("textvqa", open_answers, "_ANSWERS_FOR_FULL_SCORE", 2),
    ("textvqa", open_answers, "_ARTICLES", set()),
    ("textvqa", open_answers, "_DIGITS", {}),
    ("textvqa", open_answers, "_CONTRACTION_OF", {}),
    ("textvqa", open_answers, "_PUNCTUATION", ""),
    ("textvqa", open_answers, "_PERIOD", re.compile(r"\.(?!\d)")),
    ("ocrbench", open_answers, "FORMULA_CATEGORY", ""),
    ("ocrbench", totals, "_OCRBENCH_GROUPS", {"Text Recognition": ()}),
    ("mme", totals, "ratio", lambda sums: sums[..., 0]),
    ("mme", totals, "_MME_GROUPS", {"perception": ("OCR",), "reasoning": ("scene",)}),
    ("pope", totals, "_f1", lambda sums: sums[..., 0]),
    ("hallusionbench", totals, "percent", lambda scores: totals.count(scores)),
    ("mmbench_circular", scoring, "score_rotations", list),
    ("mmbench_circular", totals, "_MMBENCH_NAMES", {}),
    ("mmmu", scoring, "is_given", Mock(return_value=True)),
]


@pytest.mark.parametrize(
    ("name", "module", "attribute", "value"),
    MUTATIONS,
    ids=[f"{name}-{attribute}" for name, _, attribute, _ in MUTATIONS],
)
def test_a_change_of_any_rule_is_noticed(name, module, attribute, value, monkeypatch):
    monkeypatch.setattr(module, attribute, value)

    if name in CASE_RULES:
        assert wrong_cases(name, SCORING[name] + FURTHER_CASES[name])
    else:
        assert wrong_figures(name, SCORING[name])


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The dog.", "dog"),
        ("a 3.5 kg", "3.5 kg"),
        ("3.", "3."),  # a period after a digit stays
        ("x." * 40, "x" * 32 + "x." * 8),  # the published count: 32 periods
        ("up-to-date", "up to date"),
        ("up - to", "up to"),
        ("1,200-x", "1200x"),  # a comma in a number joins everything
        ("None", "0"),
        ("ten\tcats\n", "10 cats"),
        ("dont cant theyre", "don't can't they're"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im I'm", "im i'm"),  # the published table has capitals, texts are lower case
        ("y'alld've", "y'all'd've"),
        ("“hi”", "“hi”"),
    ],
)
def test_normalization(text, normalized):
    assert open_answers.normalized(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "score"), [("Il dit: Bonjour.", 1), ("BON JOUR", 0), ("bon.jour", 1)]
)
def test_multilingual_answers_are_contained(prediction, score):
    assert open_answers.contains_multilingual(prediction, "bonjour.") == score


def test_mmt_groups_are_means_of_their_categories():
    rows = [
        ("a", "ocr", 1),
        ("a", "ocr", 1),
        ("a", "ocr", 0),
        ("b", "ocr", 0),
        ("c", "counting", 1),
    ]
    questions = [
        totals.Scored({"index": n, "category": c, "l2-category": group}, "", "", float(score))
        for n, (c, group, score) in enumerate(rows)
    ]

    figures = flat(totals.mmt(questions, None).named)

    assert figures == pytest.approx(
        {"/Overall": 60, "/a": 200 / 3, "/b": 0, "/c": 100, "/OCR": 100 / 3, "/Count": 100}
    )
