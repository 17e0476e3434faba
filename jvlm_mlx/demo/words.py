"""The words and numbers that are printed in the demo's pictures, the same in all languages."""

from random import Random

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
