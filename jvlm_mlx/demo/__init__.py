"""The demo model: a very small Jina-VLM, and the labelled images that taught it."""
