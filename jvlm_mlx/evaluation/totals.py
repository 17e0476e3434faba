"""From scores of questions to the figures of a benchmark, under their published names."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import DataError
from .cells import Row, is_given, text_of
from .intervals import Array, Combined, Figure, Total, count, percent, ratio
from .multiple_choice import gold_place, most_likely
from .open_answers import numbers_agree

_MMBENCH_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
_MMT_NAMES = {
    "visual_recognition": "VR", "localization": "Loc", "ocr": "OCR", "counting": "Count",
    "hallucination": "HLN", "image_retrieval": "IR", "threed": "3D", "visual_captioning": "VC",
    "visual_grounding": "VG", "doc_understanding": "DU", "action_recognition": "AR",
    "pixel_level_perception": "PLP", "image-to-image_translation": "I2IT",
    "relation_reasoning": "RR", "intelligence_quotient_test": "IQT", "emotion": "Emo",
    "visual_illusion": "VI", "meme_understanding": "MemU", "visual_prompt_understanding": "VPU",
    "anomaly_detection": "AND", "keypoint_detection": "KD", "visual_commonsense_reasoning": "VCR",
    "image_evaluation_judgement": "IEJ", "multiple_image_analysis": "MIA",
    "cross_image_matching": "CIM", "temporal_understanding": "TU", "visual_code": "VP",
    "medical_understanding": "MedU", "autonomous_driving": "AUD",
    "discipline_knowledge_reasoning": "DKR", "embodied_ai": "EA", "gui_navigation": "GN",
}  # fmt: skip
_MME_GROUPS = {
    "perception": (
        "OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position",
        "posters", "scene",
    ),
    "reasoning": (
        "code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation",
    ),
}  # fmt: skip
_OCRBENCH_GROUPS = {
    "Text Recognition": (
        "Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition",
        "Handwriting Recognition", "Digit String Recognition", "Non-Semantic Text Recognition",
    ),
    "Scene Text-centric VQA": ("Scene Text-centric VQA",),
    "Doc-oriented VQA": ("Doc-oriented VQA",),
    "Key Information Extraction": ("Key Information Extraction",),
    "Handwritten Mathematical Expression Recognition": (
        "Handwritten Mathematical Expression Recognition",
    ),
}  # fmt: skip
OCRBENCH_CATEGORIES = frozenset(name for group in _OCRBENCH_GROUPS.values() for name in group)


@dataclass(frozen=True)
class Scored:
    """A question with its score."""

    row: Row
    """The question's cells: index, answer, category, split, ..."""
    prediction: str
    extracted: str
    """What the scorer understood: an option, yes or no, a number, or the prediction itself."""
    score: float


@dataclass(frozen=True)
class Totals:
    """The figures of a benchmark."""

    named: dict[str, Total | dict[str, Total]]
    """Figures by their published names."""
    splits: dict[str, dict[str, Total]] = field(default_factory=dict)
    """The same by split (or by category, where the published table has a line for each)."""


Aggregate = Callable[[Sequence[Scored], str | None], Totals]
"""Questions and the split that is reported, if it is one alone, to figures."""


def _by(questions: Iterable[Scored], column: str) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for question in questions:
        if is_given(question.row, column):
            groups[text_of(question.row[column])].append(question)
    return dict(sorted(groups.items()))


def _mean(questions: Iterable[Scored]) -> Figure:
    return percent([question.score for question in questions])


def _accuracies(questions: Sequence[Scored]) -> dict[str, Total]:
    named: dict[str, Total] = {"Overall": _mean(questions)}
    for column in ("l2-category", "category"):
        for name, group in _by(questions, column).items():
            named[_MMBENCH_NAMES.get(name, name)] = _mean(group)
    return named


def accuracy(questions: Sequence[Scored], reported_split: str | None) -> Totals:
    """Mean of the scores, by split and category."""
    return _split_up(questions, reported_split, _accuracies)


def _split_up(
    questions: Sequence[Scored],
    reported_split: str | None,
    figures: Callable[[Sequence[Scored]], dict[str, Total]],
) -> Totals:
    splits = _by(questions, "split")
    reported = splits.get(reported_split or "", questions)
    table = {name: figures(group) for name, group in splits.items()}
    whole = figures(reported)
    named = {"Overall": whole["Overall"]}
    named |= {name: line["Overall"] for name, line in table.items()} | whole
    return Totals(dict(named), table)


def mmt(questions: Sequence[Scored], reported_split: str | None) -> Totals:
    """MMT-Bench: means by category; a group of categories is the mean of their means."""

    def figures(questions: Sequence[Scored]) -> dict[str, Total]:
        categories: dict[str, Total] = {
            name: _mean(group) for name, group in _by(questions, "category").items()
        }
        named: dict[str, Total] = {"Overall": _mean(questions)} | categories
        for name, group in _by(questions, "l2-category").items():
            parts = [categories[category] for category in _by(group, "category")]
            if parts:
                named[_MMT_NAMES.get(name, name)] = Combined(parts, mean=True)
        return named

    return _split_up(questions, reported_split, figures)


def endings(questions: Sequence[Scored], _: str | None) -> Totals:
    """ARC-C and HellaSwag: accuracy by likelihood (acc) and by likelihood per character."""

    def figures(questions: Sequence[Scored]) -> dict[str, Total]:
        hits = [
            float(most_likely(q.row, q.prediction, normalized=False) == gold_place(q.row))
            for q in questions
        ]
        return {"acc": percent(hits), "acc_norm": _mean(questions)}

    lines = {name: figures(group) for name, group in _by(questions, "category").items()}
    return Totals(dict(figures(questions)), lines)


def gsm8k(questions: Sequence[Scored], _: str | None) -> Totals:
    """GSM-8K: the number after `####`, or the last number of an answer."""
    last = [
        float(numbers_agree(q.prediction, text_of(q.row["answer"]), strict=False))
        for q in questions
    ]
    return Totals({"strict-match": _mean(questions), "flexible-extract": percent(last)})


def multilingual(questions: Sequence[Scored], _: str | None) -> Totals:
    """MTVQA: the mean of all questions, and of each category (a language)."""
    languages = {name: _mean(group) for name, group in _by(questions, "category").items()}
    return Totals({"Overall": _mean(questions), "Average": _mean(questions), **languages})


def ocrbench(questions: Sequence[Scored], _: str | None) -> Totals:
    """OCRBench: points, one for each hit, of 1,000."""
    hits = {name: [q.score for q in group] for name, group in _by(questions, "category").items()}

    def points(categories: Iterable[str]) -> Figure:
        return count([hit for category in categories for hit in hits.get(category, [])])

    named: dict[str, Total] = {
        name: points(categories) for name, categories in _OCRBENCH_GROUPS.items()
    }
    final = points(OCRBENCH_CATEGORIES & hits.keys())
    named["Final Score"] = final
    named["Final Score Norm"] = Figure(final.columns / 10, final.formula)
    table: dict[str, Total] = {name: points([name]) for name in hits}
    return Totals(dict(named), {"category": table})


def _mme_category(questions: Sequence[Scored]) -> Figure:
    # A unit is an image: its hits, its questions, whether all of them are hits, one image.
    images = [[q.score for q in group] for group in _by(questions, "image_path").values()]
    columns = np.array([[sum(hits), len(hits), min(hits), 1] for hits in images], np.float64)
    return Figure(columns, lambda sums: 100 * ratio(sums[..., :2]) + 100 * ratio(sums[..., 2:]))


def mme(questions: Sequence[Scored], _: str | None) -> Totals:
    """MME: points by category, up to 200: accuracy, and images with both questions right."""
    categories = {name: _mme_category(group) for name, group in _by(questions, "category").items()}
    sums = {
        group: Combined([categories[name] for name in names if name in categories], mean=False)
        for group, names in _MME_GROUPS.items()
    }
    return Totals({**{name: group for name, group in sums.items() if group.parts}, **categories})


def _f1(sums: Array) -> Array:
    true_positives, said_yes, is_yes = sums[..., 0], sums[..., 1], sums[..., 2]
    # 2 P R / (P + R) with P = tp / said and R = tp / is; 0 where nothing is right, as published.
    return np.asarray(100 * 2 * true_positives / np.maximum(said_yes + is_yes, 1))


def _or_zero(numerator: int, denominator: int) -> Callable[[Array], Array]:
    return lambda sums: np.asarray(
        100 * sums[..., numerator] / np.maximum(sums[..., denominator], 1)
    )


def _pope_line(questions: Sequence[Scored]) -> dict[str, Total]:
    said_yes = np.array([q.extracted == "Yes" for q in questions])
    is_yes = np.array([text_of(q.row["answer"]) == "Yes" for q in questions])
    columns = np.stack([said_yes & is_yes, said_yes, is_yes], 1).astype(np.float64)
    return {
        "Overall": Figure(columns, _f1),
        "acc": _mean(questions),
        "precision": Figure(columns, _or_zero(0, 1)),
        "recall": Figure(columns, _or_zero(0, 2)),
    }


def pope(questions: Sequence[Scored], _: str | None) -> Totals:
    """POPE: F1 of yes. A question counts once for each of its comma-separated categories."""
    repeated = [
        Scored({**q.row, "category": category}, q.prediction, q.extracted, q.score)
        for q in questions
        for category in (
            text_of(q.row["category"]).split(",") if is_given(q.row, "category") else [None]
        )
    ]
    lines = {"Overall": _pope_line(repeated)} | {
        name: _pope_line(group) for name, group in _by(repeated, "category").items()
    }
    named = lines["Overall"] | {name: line["Overall"] for name, line in lines.items()}
    return Totals(dict(named), lines)


def _hallusion_line(questions: Sequence[Scored]) -> dict[str, Total]:
    def all_right(part: int) -> Figure:
        groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for question in questions:
            # VD_figure_x_<set>_<figure>_<question>
            places = text_of(question.row["index"]).split("_")
            group = text_of(question.row.get("l2-category"))
            groups[group, places[3], places[part]].append(question.score)
        return percent([min(scores) for scores in groups.values()])

    return {"aAcc": _mean(questions), "fAcc": all_right(4), "qAcc": all_right(5)}


def hallusion(questions: Sequence[Scored], _: str | None) -> Totals:
    """HallusionBench: questions right, figures all right, and questions right on all figures."""
    for question in questions:
        if len(text_of(question.row["index"]).split("_")) < 6:
            raise DataError(
                f"index {question.row['index']!r}: HallusionBench numbers its questions like"
                " VD_figure_x_0_1_0 (set, figure, question)"
            )
    lines = {"Overall": _hallusion_line(questions)}
    for column in ("category", "l2-category"):
        lines |= {name: _hallusion_line(group) for name, group in _by(questions, column).items()}
    return Totals({**lines["Overall"], **lines}, lines)
