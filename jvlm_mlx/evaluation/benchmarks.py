"""The benchmarks of the Jina-VLM paper (arXiv 2512.04032) as data: one line for each.

Names are those of VLMEvalKit's files (Parrot's for the multilingual ones, lm-eval's for text), so
`DocVQA_VAL.tsv` is benchmark DocVQA_VAL. Case does not matter.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import RequestError

LANGUAGES = ("ar", "cn", "en", "pt", "ru", "tr")


@dataclass(frozen=True)
class Benchmark:
    """What one benchmark is: how it is asked, scored and added up."""

    name: str
    group: str
    """Of the paper's tables."""
    prompt: str
    """How it is asked: a kind of `prompts`, or of `text_sets`."""
    scorer: str
    """A rule in `scoring.SCORERS`."""
    totals: str
    """How scores add up: a function in `scoring.TOTALS`."""
    images: str = field(default="front", kw_only=True)
    """Where images go: `front`, `numbered` (at `<image 2>`), `marked` (at each `<image>`)."""
    main: str = field(default="Overall", kw_only=True)
    """The benchmark's headline figure."""
    unit: str = field(default="percent", kw_only=True)
    reported_split: str | None = field(default=None, kw_only=True)
    """The split whose figures are reported, where the file holds others too."""
    circular: bool = field(default=False, kw_only=True)
    """Whether rows that agree modulo 1,000,000 are one question with its options rotated."""
    published: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    """Figures that the paper prints, by name."""

    @property
    def is_text(self) -> bool:
        """Whether this is a text set, without images."""
        return self.group == TEXT


VQA = "VQA"
GENERAL = "general"
REAL_WORLD = "real world"
MULTI_IMAGE = "several images"
HALLUCINATION = "hallucination"
REASONING = "reasoning"
MULTILINGUAL = "multilingual"
TEXT = "text"
OWN = "synthetic"

_BENCHMARKS = (
    Benchmark("AI2D_TEST", VQA, "choice", "choice", "accuracy"),
    Benchmark("ChartQA_TEST", VQA, "vqa", "relaxed", "accuracy"),
    Benchmark("TextVQA_VAL", VQA, "vqa", "vqa", "accuracy"),
    Benchmark("DocVQA_VAL", VQA, "vqa", "anls", "accuracy", published={"Overall": 90.6}),
    Benchmark("InfoVQA_VAL", VQA, "vqa", "anls", "accuracy"),
    Benchmark(
        "OCRBench", VQA, "plain", "ocrbench", "ocrbench",
        main="Final Score", unit="points", published={"Final Score": 778},
    ),
    Benchmark("SEEDBench2_Plus", VQA, "choice", "choice", "accuracy"),
    Benchmark("CharXiv_descriptive_val", VQA, "plain", "judge", "accuracy"),
    Benchmark("CharXiv_reasoning_val", VQA, "plain", "judge", "accuracy"),
    Benchmark("MME", GENERAL, "plain", "yes_no", "mme", main="perception", unit="points"),
    Benchmark("MMBench_DEV_EN_V11", GENERAL, "choice", "choice", "accuracy", circular=True),
    Benchmark("MMBench_DEV_CN_V11", GENERAL, "choice", "choice", "accuracy", circular=True),
    Benchmark("MMStar", GENERAL, "choice", "choice", "accuracy"),
    Benchmark(
        "RealWorldQA", REAL_WORLD, "choice", "choice", "accuracy", published={"Overall": 68.2}
    ),
    Benchmark("BLINK", MULTI_IMAGE, "choice", "choice", "accuracy"),
    Benchmark("MUIRBench", MULTI_IMAGE, "marked_choice", "choice", "accuracy", images="marked"),
    Benchmark("MMT-Bench_VAL", MULTI_IMAGE, "choice", "choice", "mmt"),
    Benchmark("POPE", HALLUCINATION, "plain", "yes_no", "pope", published={"Overall": 90.3}),
    Benchmark("HallusionBench", HALLUCINATION, "plain", "yes_no", "hallusion", main="aAcc"),
    Benchmark(
        "MMMU_DEV_VAL", REASONING, "choice", "open_choice", "accuracy",
        images="numbered", reported_split="validation", published={"Overall": 59.5},
    ),
    Benchmark("MathVista_MINI", REASONING, "plain", "judge", "accuracy"),
    *(
        Benchmark(f"mmmb_{language}", MULTILINGUAL, "choice", "choice", "accuracy")
        for language in LANGUAGES
    ),
    *(
        Benchmark(
            f"mmbench_dev_{language}", MULTILINGUAL, "choice", "choice", "accuracy", circular=True
        )
        for language in LANGUAGES
    ),
    Benchmark("MTVQA_TEST", MULTILINGUAL, "multilingual", "multilingual", "multilingual"),
    Benchmark("MMLU", TEXT, "mmlu", "likelihood", "accuracy"),
    Benchmark("MMLU-Pro", TEXT, "mmlu_pro", "mmlu_pro", "accuracy", published={"Overall": 30.3}),
    Benchmark("GSM-8K", TEXT, "gsm8k", "gsm8k", "gsm8k", main="strict-match"),
    Benchmark(
        "ARC-C", TEXT, "arc", "normalized_likelihood", "endings",
        main="acc_norm", published={"acc_norm": 77.3},
    ),
    Benchmark(
        "HellaSwag", TEXT, "hellaswag", "normalized_likelihood", "endings",
        main="acc_norm", published={"acc_norm": 59.4},
    ),
    Benchmark("demo", OWN, "plain", "exact", "accuracy"),
)  # fmt: skip

BENCHMARKS = {benchmark.name.lower(): benchmark for benchmark in _BENCHMARKS}


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name.

    Raises:
        RequestError: there is none; the message suggests the nearest.
    """
    found = BENCHMARKS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), BENCHMARKS, 1, 0.5)
        hint = f"did you mean {BENCHMARKS[near[0]].name}?" if near else "see --list"
        raise RequestError(f"no benchmark {name!r}: {hint}")
    return found
