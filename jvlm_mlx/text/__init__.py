"""Text side of the processor: tokens, their streaming back into text, and the chat template."""
