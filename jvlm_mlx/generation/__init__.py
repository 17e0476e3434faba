"""From model inputs to responses: prefill, decode loop, caches, conversations."""
