"""Questions without an image: opposites, neighbors, small sums, colors of things."""

from dataclasses import dataclass
from random import Random

from .example import Turn

TASKS = ("text_only",)

_LARGEST_NUMBER = 20
_LARGEST_SUM = 9


@dataclass(frozen=True)
class _Sentences:
    opposite: str
    opposites: tuple[tuple[str, str], ...]
    after: str
    before: str
    total: str
    color: str
    colored: tuple[tuple[str, str], ...]


_SENTENCES = {
    "en": _Sentences(
        opposite="What is the opposite of {}?",
        opposites=(("left", "right"), ("big", "small"), ("hot", "cold"), ("new", "old")),
        after="Which number comes after {}?",
        before="Which number comes before {}?",
        total="What is {} + {}?",
        color="What colour is {}?",
        colored=(("grass", "green"), ("coal", "black"), ("blood", "red"), ("the sky", "blue")),
    ),
    "de": _Sentences(
        opposite="Was ist das Gegenteil von {}?",
        opposites=(("links", "rechts"), ("groß", "klein"), ("heiß", "kalt"), ("neu", "alt")),
        after="Welche Zahl kommt nach {}?",
        before="Welche Zahl kommt vor {}?",
        total="Was ist {} + {}?",
        color="Welche Farbe hat {}?",
        colored=(("Gras", "grün"), ("Kohle", "schwarz"), ("Blut", "rot"), ("der Himmel", "blau")),
    ),
    "fr": _Sentences(
        opposite="Quel est le contraire de {} ?",
        opposites=(("gauche", "droite"), ("grand", "petit"), ("chaud", "froid"), ("neuf", "vieux")),
        after="Quel nombre vient après {} ?",
        before="Quel nombre vient avant {} ?",
        total="Combien font {} + {} ?",
        color="De quelle couleur est {} ?",
        colored=(
            ("l'herbe", "verte"), ("le charbon", "noir"), ("le sang", "rouge"), ("le ciel", "bleu"),
        ),
    ),
    "es": _Sentences(
        opposite="¿Qué es lo contrario de {}?",
        opposites=(
            ("izquierda", "derecha"), ("grande", "pequeño"), ("caliente", "frío"),
            ("nuevo", "viejo"),
        ),
        after="¿Qué número viene después del {}?",
        before="¿Qué número viene antes del {}?",
        total="¿Cuánto es {} + {}?",
        color="¿De qué color es {}?",
        colored=(
            ("la hierba", "verde"), ("el carbón", "negro"), ("la sangre", "roja"),
            ("el cielo", "azul"),
        ),
    ),
    "zh": _Sentences(
        opposite="{}的反义词是什么？",
        opposites=(("左", "右"), ("大", "小"), ("热", "冷"), ("新", "旧")),
        after="{}后面是什么数字？",
        before="{}前面是什么数字？",
        total="{} + {}等于多少？",
        color="{}是什么颜色？",
        colored=(("草", "绿色"), ("煤", "黑色"), ("血", "红色"), ("天空", "蓝色")),
    ),
}  # fmt: skip


def text_turn(language: str, random: Random) -> Turn:
    """Return one question of a random kind."""
    sentences = _SENTENCES[language]
    kind = random.choice(("opposite", "after", "before", "total", "color"))
    if kind == "opposite":
        pair = random.choice(sentences.opposites)
        word, answer = random.sample(pair, 2)
        question = sentences.opposite.format(word)
    elif kind == "total":
        first = random.randint(1, _LARGEST_SUM - 1)
        second = random.randint(1, _LARGEST_SUM - first)
        question, answer = sentences.total.format(first, second), str(first + second)
    elif kind == "color":
        thing, answer = random.choice(sentences.colored)
        question = sentences.color.format(thing)
    else:
        number = random.randint(1, _LARGEST_NUMBER)
        step = 1 if kind == "after" else -1
        question, answer = getattr(sentences, kind).format(number), str(number + step)
    return Turn(question, answer, "text_only")
