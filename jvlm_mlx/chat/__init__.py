"""Conversations: `ChatSession`; `python -m jvlm_mlx.chat` on the terminal."""

from .session import ChatSession

__all__ = ["ChatSession"]
