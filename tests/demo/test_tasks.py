import hashlib
import os
import re
import string
import subprocess
import sys
from dataclasses import fields
from random import Random

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label, regionprops

from jvlm_mlx.demo import bar_chart
from jvlm_mlx.demo.drawing import LARGE_PRINT
from jvlm_mlx.demo.phrases import CITIES, COLORS, LANGUAGES, NAMES, PHRASES, SHAPES, WORDS
from jvlm_mlx.demo.tasks import TASKS, example_at, examples, is_held_out, make_example
from jvlm_mlx.demo.text_questions import text_turn
from tests.helpers.demo_reading import (
    LABELS,
    ink_of,
    lines_of,
    print_of,
    prints,
    read_shapes,
    words_of,
)

SCENE_TASKS = ("color", "shape", "count", "position")
TILE, STRIDE = 72, 56


def english(*tasks, count=60, seed=5):
    return list(examples(seed, count * len(tasks), tasks, ("en",)))


def answers(example, task):
    return [turn for turn in example.turns if turn.task == task]


def caption_of(shapes):
    return ", ".join(f"{color} {shape} {place}" for shape, color, place in shapes)


def check_shapes(example, shapes):
    """Hold every answer about shapes against the shapes that the pixels show."""
    names = [shape for shape, _, _ in shapes]
    for question, answer, task in example.turns:
        if task == "count":
            asked = re.fullmatch(r"How many (\w+) are there\?", question)[1]
            plural = {f"{shape}{'es' if shape == 'cross' else 's'}": shape for shape in SHAPES}
            expected = len(names) if asked == "objects" else names.count(plural[asked])
            assert answer == str(expected), question
        elif task in SCENE_TASKS:
            pattern = r"(?:What colour is the|What shape is|Where is the) (?P<word>\w+)\?"
            word = re.fullmatch(pattern, question)["word"]
            matching = [one for one in shapes if word in one[:2]]
            assert len(matching) == 1, f"{question} has no single answer"
            place = {"shape": 0, "color": 1, "position": 2}[task]
            assert answer == matching[0][place], question


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_what_is_said_of_a_scene_is_in_its_pixels(task):
    for example in english(task):
        shapes = read_shapes(example.image)
        assert example.caption == caption_of(shapes)
        check_shapes(example, shapes)


def test_counts_go_from_one_to_five():
    counted = {example.turns[0].answer for example in english("count")}
    assert counted == set("12345")


def test_a_small_number_stands_beside_large_shapes():
    for example in english("small_number"):
        shapes = read_shapes(example.image, smallest=25)
        (turn,) = answers(example, "small_number")
        assert example.caption == f"number {turn.answer}, {caption_of(shapes)}"
        check_shapes(example, shapes)


def without_shapes(image):
    """The print of an image where its high shapes are cut out."""
    ink = print_of(image)
    for region in regionprops(label(ink_of(image), connectivity=2)):
        top, left, bottom, right = region.bbox
        if bottom - top > 15:
            # One more on each side, for their soft edges.
            ink[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
    return ink


def test_a_small_number_is_printed_in_one_tile():
    for example in english("small_number"):
        ink = without_shapes(example.image)
        (turn,) = answers(example, "small_number")
        assert prints(ink, turn.answer)
        assert not prints(ink, turn.answer[::-1] if turn.answer != turn.answer[::-1] else "000")
        check_in_one_tile(ink, example.image)


def check_in_one_tile(ink, image):
    """Nothing is cut off by the paper's edge, and one tile shows all of it."""
    for axis, size in ((1, image.height), (0, image.width)):
        places = np.flatnonzero(ink.any(axis=axis))
        first, last = places[0], places[-1]
        assert first > 0
        assert last < size - 1
        starts = range(0, size - TILE + 1, STRIDE)
        assert any(start <= first and last < start + TILE for start in starts)


@pytest.mark.parametrize("task", ["number", "word"])
def test_large_print_says_what_is_asked_for(task):
    both = 0
    for example in english(task):
        ink = print_of(example.image)
        lines = [ink[top:bottom] for top, bottom in lines_of(ink)]
        printed = re.findall("[A-Z]+|[0-9]+", example.caption)
        assert len(lines) == len(printed)
        for line, text in zip(lines, printed, strict=True):
            assert prints(line, text, LARGE_PRINT)
        assert {turn.answer for turn in example.turns} == set(printed)
        for turn in example.turns:
            assert turn.answer.isdigit() == (turn.task == "number")
        check_in_one_tile(ink, example.image)
        both += len(printed) == 2
    assert 20 < both < 60  # most images have both, not all


def test_bars_are_as_high_as_their_values():
    for example in english("bar_value", "bar_largest", count=40):
        pixels = np.asarray(example.image).astype(int)
        values = {}
        for place, letter in enumerate(bar_chart.LETTERS):
            middle = bar_chart.FIRST_BAR + place * bar_chart.BAR_DISTANCE + 8
            column = pixels[: bar_chart.BASELINE, middle]
            same = np.abs(column - column[-1]).sum(axis=1) == 0
            height = int(np.argmin(same[::-1])) if not same.all() else len(same)
            if column[-1].min() < 150:
                value, rest = divmod(height, bar_chart.UNIT)
                assert rest == 0
                values[letter] = value
        listed = ", ".join(f"{letter} {value}" for letter, value in values.items())
        assert example.caption == f"bars {listed}"
        for turn in example.turns:
            if turn.task == "bar_largest":
                assert [turn.answer] == [
                    letter for letter, value in values.items() if value == max(values.values())
                ]
            else:
                letter = re.fullmatch(r"What is the value of ([A-D])\?", turn.question)[1]
                assert turn.answer == str(values[letter])


def test_bars_have_their_letters_below():
    for example in english("bar_value", count=20):
        ink = print_of(example.image)[bar_chart.BASELINE + 1 :]
        letters = words_of(ink, gap=8)
        shown = re.findall("[A-D]", example.caption)
        assert len(letters) == len(shown)
        for (left, right), letter in zip(letters, shown, strict=True):
            assert prints(ink[:, left:right], letter)


def test_a_form_has_its_values_beside_their_labels():
    orders = set()
    for example in english("form"):
        shift = example.image.width - 128
        ink = print_of(example.image)
        ink[:, :shift] = False
        values, order = {}, []
        for top, bottom in lines_of(ink):
            line = ink[top:bottom]
            title, value = (line[:, left:right] for left, right in words_of(line, gap=8))
            (name,) = [text for text in LABELS if prints(title, text)]
            order.append(name)
            values[name] = value
            alone = np.zeros_like(ink)
            (_, (left, right)) = words_of(line, gap=8)
            alone[top:bottom, left:right] = ink[top:bottom, left:right]
            check_in_one_tile(alone, example.image)
        orders.add(tuple(order))
        asked = {"What is the name?": "NAME", "What is the city?": "CITY"}
        assert len(example.turns) == 3
        for question, answer, _ in example.turns:
            assert prints(values[asked.get(question, "NO")], answer)
    assert len(orders) == 6


def test_what_stands_beside_a_form_is_no_part_of_it():
    widths = {example.image.width for example in english("form")}
    assert widths == {128, 184}


def test_words_are_told_apart_by_what_they_are():
    assert len(set(WORDS)) == len(WORDS) == 60
    assert not set(NAMES) & set(CITIES)
    assert all(set(word) <= set(string.ascii_uppercase) and 3 <= len(word) <= 5 for word in WORDS)


def test_questions_without_a_image_have_right_answers():
    seen = set()
    for number in range(400):
        question, answer, _ = text_turn("en", Random(number))
        numbers = [int(one) for one in re.findall("[0-9]+", question)]
        if "+" in question:
            assert answer == str(sum(numbers))
        elif "after" in question:
            assert answer == str(numbers[0] + 1)
        elif "before" in question:
            assert answer == str(numbers[0] - 1)
        else:
            seen.add((question, answer))
    assert ("What is the opposite of left?", "right") in seen
    assert ("What is the opposite of right?", "left") in seen
    assert ("What colour is grass?", "green") in seen
    assert len(seen) == len({question for question, _ in seen}) == 12


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_stands_first_in_every_language(task, language):
    for number in range(10):
        example = make_example(task, language, Random(number))
        assert example.task == example.turns[0].task == task
        assert example.language == language
        assert 1 <= len(example.turns) <= 5
        questions = [turn.question for turn in example.turns]
        assert len(set(questions)) == len(questions)
        assert (example.image is None) == (task == "text_only") == (example.caption == "")
        for turn in example.turns:
            assert turn.task in TASKS
            assert turn.question.endswith(("?", "？"))
            assert turn.answer == turn.answer.strip() != ""
            assert "{" not in turn.question + turn.answer + example.caption


@pytest.mark.parametrize("task", TASKS)
def test_all_languages_say_the_same(task):
    """One image, and the same questions in the same order; answers differ where English does."""
    translated = {}
    for number in range(60):
        first = make_example(task, "en", Random(number))
        for language in LANGUAGES[1:]:
            other = make_example(task, language, Random(number))
            if first.image is not None:
                assert other.image.tobytes() == first.image.tobytes()
            assert [turn.task for turn in other.turns] == [turn.task for turn in first.turns]
            for one, two in zip(first.turns, other.turns, strict=True):
                said = translated.setdefault((language, one.question), two.question)
                assert said == two.question
                said = translated.setdefault((language, one.question, one.answer), two.answer)
                assert said == two.answer
                if re.fullmatch("[0-9A-Z]+", one.answer):
                    assert two.answer == one.answer
                elif (language, one.answer) != ("fr", "triangle"):
                    assert two.answer != one.answer
    by_question = {}
    for (language, question, *_), text in translated.items():
        by_question.setdefault((language, question, bool(_)), []).append(text)
    for texts in by_question.values():
        assert len(set(texts)) == len(texts)


def test_phrases_have_the_same_places_for_names():
    def places(text):
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)

    first = PHRASES["en"]
    for phrases in PHRASES.values():
        assert set(phrases.shapes) == set(SHAPES)
        assert set(phrases.colors) == set(COLORS)
        assert len(set(phrases.places)) == 9
        genders = {noun.gender for noun in phrases.shapes.values()}
        assert genders == set(phrases.count)
        for color in phrases.colors.values():
            assert set(color.at_noun) == set(color.of_noun) == genders
        for field in fields(phrases):
            one, two = getattr(first, field.name), getattr(phrases, field.name)
            if isinstance(one, str):
                assert places(one) == places(two)
            elif field.name.startswith("form"):
                assert {key: places(text) for key, text in one.items()} == {
                    key: places(text) for key, text in two.items()
                }


@pytest.mark.parametrize(
    ("language", "question", "answer"),
    [
        ("de", "Welche Farbe hat der Kreis?", "rot"),
        ("fr", "De quelle couleur est le cercle ?", "vert"),
        ("fr", "De quelle couleur est la croix ?", "verte"),
        ("fr", "De quelle couleur est l'étoile ?", "bleue"),
        ("fr", "Quelle forme est noire ?", "cercle"),
        ("fr", "Combien d'étoiles y a-t-il ?", "1"),
        ("es", "¿De qué color es la cruz?", "negra"),
        ("es", "¿De qué color es el cuadrado?", "negro"),
        ("es", "¿Qué forma es amarilla?", "cruz"),
        ("es", "¿Cuántas estrellas hay?", "1"),
        ("es", "¿Cuántos círculos hay?", "1"),
        ("zh", "圆形是什么颜色？", "红色"),
    ],
)
def test_grammar_follows_the_gender(language, question, answer):
    asked = {
        (turn.question, turn.answer)
        for example in examples(3, 600, SCENE_TASKS, (language,))
        for turn in example.turns
    }
    assert (question, answer) in asked


def test_captions_bend_colors_to_their_shapes():
    captions = " ".join(example.caption for example in examples(3, 300, SCENE_TASKS, ("de",)))
    for words in ("roter Kreis", "rotes Quadrat", "grüner Stern", "lila Dreieck", "blaues Kreuz"):
        assert words in captions


def digest(**options):
    total = hashlib.sha256()
    for example in examples(9, 33, **options):
        total.update(repr((example.task, example.language, example.turns)).encode())
        total.update(example.caption.encode())
        if example.image is not None:
            total.update(example.image.tobytes())
    return total.hexdigest()


def test_a_seed_gives_the_same_examples_whatever_the_hash_seed():
    code = "from tests.demo import test_tasks as tests; print(tests.digest())"
    found = {digest()}
    for hash_seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(run.stdout.strip())
    assert len(found) == 1


def test_an_example_does_not_need_those_before_it():
    series = list(examples(4, 20))
    for place in (0, 7, 19):
        alone = example_at(4, place)
        assert (alone.turns, alone.caption) == (series[place].turns, series[place].caption)


def test_tasks_take_turns():
    tasks = [example.task for example in examples(0, 2 * len(TASKS))]
    assert tasks == [*TASKS, *TASKS]
    assert {example.language for example in examples(0, 100)} == set(LANGUAGES)


def images(seed, count, **options):
    with_images = [task for task in TASKS if task != "text_only"]
    return [example.image.tobytes() for example in examples(seed, count, with_images, **options)]


def test_seeds_give_other_images():
    assert not set(images(0, 100)) & set(images(1, 100))


def test_no_image_is_both_trained_on_and_held_out():
    # The seed is the same, so that only the rule keeps them apart.
    trained = list(examples(0, 200, ("number", "color")))
    held_out = list(examples(0, 200, ("number", "color"), held_out=True))
    assert not any(is_held_out(example.image) for example in trained)
    assert all(is_held_out(example.image) for example in held_out)


def test_a_quarter_of_all_images_is_held_out():
    random = Random(0)
    held_out = sum(is_held_out(make_example("color", "en", random).image) for _ in range(400))
    assert 70 < held_out < 130  # three standard deviations around 100


def test_images_have_the_sizes_of_whole_tiles():
    for example in examples(0, 200):
        if example.image is None:
            continue
        assert example.image.mode == "RGB"
        assert all((side - 16) % STRIDE == 0 for side in example.image.size)
        tiles = np.prod([(side - 16) // STRIDE for side in example.image.size])
        assert tiles <= 6


def test_unknown_tasks_and_languages_are_refused():
    with pytest.raises(ValueError, match="no task 'chess'"):
        make_example("chess", "en", Random(0))
    with pytest.raises(ValueError, match="language 'la'"):
        make_example("color", "la", Random(0))


def test_reading_notices_a_wrong_label():
    """The reader of these tests does not say what it is told."""
    example = next(iter(examples(0, 1, ("number",), ("en",))))
    assert not prints(print_of(example.image), "000", LARGE_PRINT)
    empty = Image.new("RGB", (72, 72), (255, 255, 255))
    assert read_shapes(empty) == []
