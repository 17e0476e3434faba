"""Changes to bytes, texts and JSON; all chance comes from the generator that is handed in."""

import copy
import json

NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**19, -(2**63))
FLOATS = (0.0, -0.0, 1e-300, 1e300, 5e-324, float("nan"), float("inf"), -float("inf"), 0.5)
TEXTS = (
    "", " ", "\x00", "a" * 300, "ü", "\u202e", "\ud800", "../../x", "/etc/passwd", "~nobody/x",
    "file:///etc/passwd", "http://127.0.0.1:1/", "data:,", "<|image|>", "<im_patch>", "-1", "1e999",
    "{{ 'a' * 10**9 }}", "{% for i in range(10**9) %}x{% endfor %}", "(a+)+$", "true", "null",
)  # fmt: skip


def mutate_bytes(chance, data):
    """Flip, cut, repeat, insert or overwrite a few bytes."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[place % len(data)] = chance.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del data[place : place + chance.choice((1, 4, 64, 4096))]
        elif kind == 3:
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
        elif kind == 4:
            data[place:place] = data[place : place + chance.choice((8, 64, 512))]
        elif data:
            size = chance.choice((2, 4, 8))
            start = place % len(data)
            number = chance.choice(NUMBERS) % 256**size
            order = chance.choice(("little", "big"))
            data[start : start + size] = number.to_bytes(size, order)
    return bytes(data)


def mutate_json(chance, value):
    """Replace, drop, double or nest one or a few places of a JSON value."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        value = _change(chance, value)
    return value


def _change(chance, value):
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.75 and isinstance(value[key], dict | list):
            value[key] = _change(chance, value[key])
            return value
        kind = chance.randrange(4)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[chance.choice(TEXTS)] = value[key]
        else:
            value[key] = odd_value(chance, value[key])
        return value
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        kind = chance.randrange(4)
        if kind == 0:
            del value[place]
        elif kind == 1:
            value.extend([value[place]] * chance.choice((1, 3, 40)))
        elif kind == 2 and isinstance(value[place], dict | list):
            value[place] = _change(chance, value[place])
        else:
            value[place] = odd_value(chance, value[place])
        return value
    return odd_value(chance, value)


def odd_value(chance, value):
    """Return something else for a value, often of its own kind."""
    if chance.random() < 0.5:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return chance.choice((*NUMBERS, value + 1, value - 1, value * 2, -value))
        if isinstance(value, float):
            return chance.choice((*FLOATS, value * 1e30, -value))
        if isinstance(value, str):
            return chance.choice((*TEXTS, value + "x", value[1:], value * 50))
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice(NUMBERS)
    if kind == 1:
        return chance.choice(FLOATS)
    if kind == 2:
        return chance.choice(TEXTS)
    if kind == 3:
        return chance.choice((None, True, False, [], {}))
    if kind == 4:
        return [value] * chance.choice((1, 2, 100))
    if kind == 5:
        return {"type": value, "x": [value]}
    if kind == 6:
        nested = value
        for _ in range(chance.choice((3, 200))):
            nested = [nested]
        return nested
    return 10 ** chance.choice((20, 60, 400))


def as_text(chance, value):
    """Return JSON as a file may hold it, sometimes damaged."""
    text = json.dumps(value)
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(chance, data) if chance.random() < 0.1 else data
