"""The demo model: a very small Jina-VLM, and the labelled pictures that taught it."""
