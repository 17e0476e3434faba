"""The demo's sentences: every question and answer about an image, in five languages, and the words
and numbers that are printed in images."""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple


class Noun(NamedTuple):
    """The name of a shape."""

    name: str
    definite: str
    """With its article, as in a question."""
    plural: str
    """As it follows "how many"."""
    gender: str
    """m, f or n; rules the form of a color next to it."""


class Color(NamedTuple):
    """The name of a color."""

    at_noun: dict[str, str]
    """In "red circle", by the noun's gender."""
    of_noun: dict[str, str]
    """In "the circle is red", by the noun's gender."""
    of_shape: str
    """In "what shape is red"."""


@dataclass(frozen=True)
class Phrases:
    """One language. Questions have `{}` where a name goes."""

    shapes: dict[str, Noun]
    colors: dict[str, Color]
    places: tuple[str, ...]
    """Nine, row by row."""
    object_in_caption: str
    """With {shape}, {color} and {place}."""
    describe: str
    color: str
    shape: str
    position: str
    count: dict[str, str]
    """By gender of what is counted."""
    count_objects: str
    number: str
    word: str
    bar_value: str
    bar_largest: str
    form: dict[str, str]
    """By label."""
    number_in_caption: str
    word_in_caption: str
    bars_in_caption: str
    form_in_caption: dict[str, str]


SHAPES = ("circle", "square", "triangle", "cross", "star")
COLORS = ("red", "green", "blue", "yellow", "black", "purple")
FIELDS = ("name", "city", "number")

# Printed in the images, the same in all languages.
NAMES = (
    "ANNA", "BEN", "EMMA", "FINN", "IDA", "JACK", "KATE", "LEO", "LISA", "MAX",
    "NINA", "NOAH", "OTTO", "PAUL", "RITA", "SAM", "TOM", "UMA", "VERA", "ZOE",
)  # fmt: skip
CITIES = (
    "BAKU", "BERN", "BONN", "CAIRO", "DELHI", "DOHA", "GRAZ", "KYIV", "LIMA", "MILAN",
    "NICE", "OSLO", "PARIS", "PERTH", "QUITO", "RIGA", "ROME", "SEOUL", "TOKYO", "YORK",
)  # fmt: skip
THINGS = (
    "BIRD", "BOAT", "BOOK", "BUS", "FISH", "GOLD", "HOTEL", "KEY", "LAMP", "METRO",
    "MOON", "PIANO", "PIZZA", "RADIO", "RAIN", "SOFA", "SUN", "TAXI", "TREE", "WIND",
)  # fmt: skip
WORDS = (*NAMES, *CITIES, *THINGS)
DIGITS = tuple("0123456789")
LETTERS = tuple(sorted(set("".join(WORDS))))


def random_number(random: Random, digits: int) -> str:
    """Return a number of so many digits, the first not 0."""
    return str(random.randrange(10 ** (digits - 1), 10**digits))


def _shapes(*nouns: tuple[str, str, str, str]) -> dict[str, Noun]:
    return {shape: Noun(*noun) for shape, noun in zip(SHAPES, nouns, strict=True)}


def _colors(
    at_noun: dict[str, int], of_noun: dict[str, int], of_shape: int, *forms: str
) -> dict[str, Color]:
    """Read colors written as "form form form"; numbers say which form stands where."""
    table = {}
    for color, line in zip(COLORS, forms, strict=True):
        words = line.split()
        table[color] = Color(
            {gender: words[place] for gender, place in at_noun.items()},
            {gender: words[place] for gender, place in of_noun.items()},
            words[of_shape],
        )
    return table


def _fields(*texts: str) -> dict[str, str]:
    return dict(zip(FIELDS, texts, strict=True))


PHRASES = {
    "en": Phrases(
        shapes=_shapes(
            ("circle", "the circle", "circles", "n"),
            ("square", "the square", "squares", "n"),
            ("triangle", "the triangle", "triangles", "n"),
            ("cross", "the cross", "crosses", "n"),
            ("star", "the star", "stars", "n"),
        ),
        colors=_colors(
            {"n": 0}, {"n": 0}, 0, "red", "green", "blue", "yellow", "black", "purple"
        ),
        places=(
            "top left", "top", "top right",
            "left", "middle", "right",
            "bottom left", "bottom", "bottom right",
        ),
        object_in_caption="{color} {shape} {place}",
        describe="Describe the picture.",
        color="What colour is {}?",
        shape="What shape is {}?",
        position="Where is {}?",
        count={"n": "How many {} are there?"},
        count_objects="How many objects are there?",
        number="Which number is printed?",
        word="Which word is printed?",
        bar_value="What is the value of {}?",
        bar_largest="Which bar is the largest?",
        form=_fields("What is the name?", "What is the city?", "What is the number?"),
        number_in_caption="number {}",
        word_in_caption="word {}",
        bars_in_caption="bars {}",
        form_in_caption=_fields("name {}", "city {}", "number {}"),
    ),
    "de": Phrases(
        shapes=_shapes(
            ("Kreis", "der Kreis", "Kreise", "m"),
            ("Quadrat", "das Quadrat", "Quadrate", "n"),
            ("Dreieck", "das Dreieck", "Dreiecke", "n"),
            ("Kreuz", "das Kreuz", "Kreuze", "n"),
            ("Stern", "der Stern", "Sterne", "m"),
        ),
        colors=_colors(
            {"m": 1, "n": 2}, {"m": 0, "n": 0}, 0,
            "rot roter rotes", "grün grüner grünes", "blau blauer blaues",
            "gelb gelber gelbes", "schwarz schwarzer schwarzes", "lila lila lila",
        ),
        places=(
            "oben links", "oben", "oben rechts",
            "links", "in der Mitte", "rechts",
            "unten links", "unten", "unten rechts",
        ),
        object_in_caption="{color} {shape} {place}",
        describe="Beschreibe das Bild.",
        color="Welche Farbe hat {}?",
        shape="Welche Form ist {}?",
        position="Wo ist {}?",
        count={"m": "Wie viele {} gibt es?", "n": "Wie viele {} gibt es?"},
        count_objects="Wie viele Objekte gibt es?",
        number="Welche Zahl steht da?",
        word="Welches Wort steht da?",
        bar_value="Welchen Wert hat {}?",
        bar_largest="Welcher Balken ist der größte?",
        form=_fields("Wie lautet der Name?", "Wie lautet die Stadt?", "Wie lautet die Nummer?"),
        number_in_caption="Zahl {}",
        word_in_caption="Wort {}",
        bars_in_caption="Balken {}",
        form_in_caption=_fields("Name {}", "Stadt {}", "Nummer {}"),
    ),
    "fr": Phrases(
        shapes=_shapes(
            ("cercle", "le cercle", "de cercles", "m"),
            ("carré", "le carré", "de carrés", "m"),
            ("triangle", "le triangle", "de triangles", "m"),
            ("croix", "la croix", "de croix", "f"),
            ("étoile", "l'étoile", "d'étoiles", "f"),
        ),
        colors=_colors(
            {"m": 0, "f": 1}, {"m": 0, "f": 1}, 1,
            "rouge rouge", "vert verte", "bleu bleue", "jaune jaune", "noir noire",
            "violet violette",
        ),
        places=(
            "en haut à gauche", "en haut", "en haut à droite",
            "à gauche", "au milieu", "à droite",
            "en bas à gauche", "en bas", "en bas à droite",
        ),
        object_in_caption="{shape} {color} {place}",
        describe="Décris l'image.",
        color="De quelle couleur est {} ?",
        shape="Quelle forme est {} ?",
        position="Où est {} ?",
        count={"m": "Combien {} y a-t-il ?", "f": "Combien {} y a-t-il ?"},
        count_objects="Combien d'objets y a-t-il ?",
        number="Quel nombre est écrit ?",
        word="Quel mot est écrit ?",
        bar_value="Quelle est la valeur de {} ?",
        bar_largest="Quelle barre est la plus grande ?",
        form=_fields("Quel est le nom ?", "Quelle est la ville ?", "Quel est le numéro ?"),
        number_in_caption="nombre {}",
        word_in_caption="mot {}",
        bars_in_caption="barres {}",
        form_in_caption=_fields("nom {}", "ville {}", "numéro {}"),
    ),
    "es": Phrases(
        shapes=_shapes(
            ("círculo", "el círculo", "círculos", "m"),
            ("cuadrado", "el cuadrado", "cuadrados", "m"),
            ("triángulo", "el triángulo", "triángulos", "m"),
            ("cruz", "la cruz", "cruces", "f"),
            ("estrella", "la estrella", "estrellas", "f"),
        ),
        colors=_colors(
            {"m": 0, "f": 1}, {"m": 0, "f": 1}, 1,
            "rojo roja", "verde verde", "azul azul", "amarillo amarilla", "negro negra",
            "morado morada",
        ),
        places=(
            "arriba a la izquierda", "arriba", "arriba a la derecha",
            "a la izquierda", "en el centro", "a la derecha",
            "abajo a la izquierda", "abajo", "abajo a la derecha",
        ),
        object_in_caption="{shape} {color} {place}",
        describe="Describe la imagen.",
        color="¿De qué color es {}?",
        shape="¿Qué forma es {}?",
        position="¿Dónde está {}?",
        count={"m": "¿Cuántos {} hay?", "f": "¿Cuántas {} hay?"},
        count_objects="¿Cuántos objetos hay?",
        number="¿Qué número está escrito?",
        word="¿Qué palabra está escrita?",
        bar_value="¿Cuál es el valor de {}?",
        bar_largest="¿Qué barra es la más grande?",
        form=_fields("¿Cuál es el nombre?", "¿Cuál es la ciudad?", "¿Cuál es el número?"),
        number_in_caption="número {}",
        word_in_caption="palabra {}",
        bars_in_caption="barras {}",
        form_in_caption=_fields("nombre {}", "ciudad {}", "número {}"),
    ),
    "zh": Phrases(
        shapes=_shapes(
            ("圆形", "圆形", "圆形", "n"),
            ("正方形", "正方形", "正方形", "n"),
            ("三角形", "三角形", "三角形", "n"),
            ("十字", "十字", "十字", "n"),
            ("星形", "星形", "星形", "n"),
        ),
        colors=_colors(
            {"n": 0}, {"n": 0}, 0, "红色", "绿色", "蓝色", "黄色", "黑色", "紫色"
        ),
        places=("左上", "上面", "右上", "左边", "中间", "右边", "左下", "下面", "右下"),
        object_in_caption="{place} {color} {shape}",
        describe="描述这张图片。",
        color="{}是什么颜色？",
        shape="{}的是什么形状？",
        position="{}在哪里？",
        count={"n": "有几个{}？"},
        count_objects="有几个物体？",
        number="写的是什么数字？",
        word="写的是什么单词？",
        bar_value="{}的值是多少？",
        bar_largest="哪根柱子最高？",
        form=_fields("名字是什么？", "城市是什么？", "号码是什么？"),
        number_in_caption="数字 {}",
        word_in_caption="单词 {}",
        bars_in_caption="柱子 {}",
        form_in_caption=_fields("名字 {}", "城市 {}", "号码 {}"),
    ),
}  # fmt: skip
LANGUAGES = tuple(PHRASES)
