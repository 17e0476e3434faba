"""Questions without a picture: opposites, neighbors, small sums, colours of things."""

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
    colour: str
    coloured: tuple[tuple[str, str], ...]


_SENTENCES = {
    "en": _Sentences(
        opposite="What is the opposite of {}?",
        opposites=(("left", "right"), ("big", "small"), ("hot", "cold"), ("new", "old")),
        after="Which number comes after {}?",
        before="Which number comes before {}?",
        total="What is {} + {}?",
        colour="What colour is {}?",
        coloured=(("grass", "green"), ("coal", "black"), ("blood", "red"), ("the sky", "blue")),
    ),
    "de": _Sentences(
        opposite="Was ist das Gegenteil von {}?",
        opposites=(("links", "rechts"), ("groß", "klein"), ("heiß", "kalt"), ("neu", "alt")),
        after="Welche Zahl kommt nach {}?",
        before="Welche Zahl kommt vor {}?",
        total="Was ist {} + {}?",
        colour="Welche Farbe hat {}?",
        coloured=(("Gras", "grün"), ("Kohle", "schwarz"), ("Blut", "rot"), ("der Himmel", "blau")),
    ),
    "fr": _Sentences(
        opposite="Quel est le contraire de {} ?",
        opposites=(("gauche", "droite"), ("grand", "petit"), ("chaud", "froid"), ("neuf", "vieux")),
        after="Quel nombre vient après {} ?",
        before="Quel nombre vient avant {} ?",
        total="Combien font {} + {} ?",
        colour="De quelle couleur est {} ?",
        coloured=(
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
        colour="¿De qué color es {}?",
        coloured=(
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
        colour="{}是什么颜色？",
        coloured=(("草", "绿色"), ("煤", "黑色"), ("血", "红色"), ("天空", "蓝色")),
    ),
}  # fmt: skip


def text_turn(language: str, random: Random) -> Turn:
    """Return one question of a random kind."""
    sentences = _SENTENCES[language]
    kind = random.choice(("opposite", "after", "before", "total", "colour"))
    if kind == "opposite":
        pair = random.choice(sentences.opposites)
        word, answer = random.sample(pair, 2)
        question = sentences.opposite.format(word)
    elif kind == "total":
        first = random.randint(1, _LARGEST_SUM - 1)
        second = random.randint(1, _LARGEST_SUM - first)
        question, answer = sentences.total.format(first, second), str(first + second)
    elif kind == "colour":
        thing, answer = random.choice(sentences.coloured)
        question = sentences.colour.format(thing)
    else:
        number = random.randint(1, _LARGEST_NUMBER)
        step = 1 if kind == "after" else -1
        question, answer = getattr(sentences, kind).format(number), str(number + step)
    return Turn(question, answer, "text_only")
