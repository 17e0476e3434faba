"""Conversations: each turn is what a fresh run says, and computes only what is new."""

import threading

import pytest
from PIL import Image

from jvlm_mlx import ChatSession, GenerationCaches
from jvlm_mlx.errors import ImageError, PromptError, RequestError
from tests.helpers.conversations import OPTIONS, fresh, say, user


@pytest.fixture
def images(golden_folder):
    return {name: golden_folder / "images" / f"{name}.png" for name in ("shapes", "dot", "square")}


def test_every_turn_is_what_a_fresh_run_says(tiny, images):
    session = ChatSession(*tiny, "Be brief.", **OPTIONS)
    messages, shown = [{"role": "system", "content": "Be brief."}], []
    turns = (
        ("Hello", []),
        ("What is this?", [images["dot"]]),
        ("And these?", [images["square"], images["dot"]]),
        ("Thanks", []),
    )
    cached = 0
    for text, new in turns:
        answer, response = say(session, text, new)
        messages.append(user(text, len(new)))
        shown += new
        expected = fresh(tiny, messages, shown)
        assert (answer, response.prompt_tokens) == (expected.text, expected.prompt_tokens)
        assert response.cached_tokens >= cached
        # The next turn reads nothing of this prompt again.
        cached = response.prompt_tokens
        messages.append({"role": "assistant", "content": answer})
    assert [message["role"] for message in session.history] == ["user", "assistant"] * 4
    assert [image.layout.num_tiles for image in session.images] == [2, 2, 2]
    # An image that was there before did not go through the tower again.
    assert session.caches.stats()["features"].hits == 1


def test_images_go_where_the_parts_say(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    parts = [
        {"type": "text", "text": "Left"},
        {"type": "image", "image": str(images["dot"])},
        {"type": "text", "text": "right"},
        {"type": "image"},
    ]
    answer, _ = say(session, parts, images["square"])
    expected = fresh(tiny, [{"role": "user", "content": parts}], [images["square"]])
    assert answer == expected.text
    with pytest.raises(PromptError, match=r"1 image parts .* but 0 images"):
        session.ask(parts)


def test_image_options_of_one_question_stay_with_its_images(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    say(session, "What?", images["shapes"], max_crops=2)
    _, response = say(session, "And?", images["shapes"])
    few, many = response.tiles
    assert few <= 3 < many
    _, response = say(session, "And?", max_crops=1)
    assert response.tiles == (few, many)


def test_answers_closed_early_are_stored_as_far_as_they_came(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    whole, _ = say(ChatSession(*tiny, **OPTIONS), "What?", images["dot"])
    answer = session.ask("What?", images["dot"])
    said = next(answer).text + next(answer).text + next(answer).text
    answer.close()
    assert whole.startswith(said)
    assert session.history[1] == {"role": "assistant", "content": said}
    next_answer, _ = say(session, "Go on")
    messages = [user("What?", 1), session.history[1], user("Go on")]
    assert next_answer == fresh(tiny, messages, [images["dot"]]).text


@pytest.mark.parametrize("stage", ["tiles", "prefill", "answer"])
def test_cancelling(tiny, images, stage):
    session = ChatSession(*tiny, **OPTIONS)
    cancel = threading.Event()

    def progress(event):
        if event.stage == stage:
            cancel.set()

    responses = []
    for response in session.ask("What?", images["dot"], cancel=cancel, progress=progress):
        responses.append(response)
        if stage == "answer" and len(responses) == 2:
            cancel.set()
    assert responses[-1].finish_reason == "cancelled"
    assert len(session.history) == (2 if stage == "answer" else 0)
    answer, _ = say(session, "Hello") if stage != "answer" else (None, None)
    if answer is not None:
        assert answer == fresh(tiny, [user("Hello")], None).text


def test_failures_leave_the_history_as_it_was(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    say(session, "Hello")
    before = session.history
    with pytest.raises(ImageError, match="no such"):
        session.ask("What?", "/no such image.png")
    with pytest.raises(RequestError, match="temperature"):
        session.ask("What?", temperature=-1)
    with pytest.raises(RequestError, match="max_tokens"):
        ChatSession(*tiny, max_tokens=0)

    def progress(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(session.ask("What?", images["dot"], progress=progress))
    assert session.history == before
    say(session, "Still there?")
    assert len(session.history) == 4


def test_one_answer_at_a_time(tiny, tmp_path):
    session = ChatSession(*tiny, **OPTIONS)
    early = session.ask("First")
    answer = session.ask("Second")
    next(answer)
    for action in (lambda: session.ask("x"), session.reset, lambda: session.save(tmp_path / "x")):
        with pytest.raises(RequestError, match="still being made"):
            action()
    answer.close()
    with pytest.raises(RequestError, match="has continued"):
        next(early)
    session.reset()
    assert session.history == []
    assert say(session, "Second")[0] == fresh(tiny, [user("Second")], None).text


def test_the_last_question_can_be_undone(tiny, images):
    session = ChatSession(*tiny, **OPTIONS)
    first, _ = say(session, "Hello")
    say(session, "What?", images["dot"])
    question = session.undo()
    assert [part["type"] for part in question["content"]] == ["image", "text"]
    assert [message["content"] for message in session.history][1:] == [first]
    again, response = say(session, question["content"])
    assert response.cached_tokens == response.prompt_tokens - 1
    messages = [user("Hello"), {"role": "assistant", "content": first}, user("What?", 1)]
    assert again == fresh(tiny, messages, [images["dot"]]).text
    session.undo()
    session.undo()
    with pytest.raises(RequestError, match="no question yet"):
        session.undo()


def test_history_is_a_copy(tiny):
    session = ChatSession(*tiny, **OPTIONS)
    say(session, "Hello")
    session.history[0]["content"].clear()
    session.history.clear()
    assert len(session.history[0]["content"]) == 1


def test_sessions_share_caches_and_nothing_else(tiny, images):
    caches = GenerationCaches()
    answers = []
    for _ in range(2):
        session = ChatSession(*tiny, caches=caches, **OPTIONS)
        answers.append(say(session, "What?", images["dot"]))
    assert answers[0][0] == answers[1][0]
    assert answers[1][1].cached_tokens == answers[1][1].prompt_tokens - 1


def test_sessions_without_room_for_caches(tiny, images):
    session = ChatSession(*tiny, caches=GenerationCaches(0), **OPTIONS)
    messages = []
    for text, new in (("What?", [images["dot"]]), ("And?", [])):
        answer, response = say(session, text, new)
        messages.append(user(text, len(new)))
        assert answer == fresh(tiny, messages, [images["dot"]]).text
        assert response.cached_tokens == 0
        messages.append({"role": "assistant", "content": answer})


def test_a_pdf_is_all_its_pages(tiny, tmp_path):
    path = tmp_path / "report.pdf"
    pages = [Image.new("RGB", (60, 40), color) for color in ("red", "blue")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    session = ChatSession(*tiny, **OPTIONS)
    say(session, "What is this?", [path])
    assert [image.name for image in session.images] == [
        f"page {number} of '{path}'" for number in (1, 2)
    ]
