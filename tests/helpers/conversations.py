"""Conversations in tests: a question to a session, and the same asked of a fresh run."""

import jvlm_mlx

OPTIONS = {"max_tokens": 8, "stop_token_ids": ()}


def say(session, text, images=None, **options):
    responses = list(session.ask(text, images, **options))
    return "".join(response.text for response in responses), responses[-1]


def fresh(tiny, messages, images, **options):
    return jvlm_mlx.generate(*tiny, messages, images, **{**OPTIONS, **options})


def user(text, images=0):
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return {"role": "user", "content": content}
