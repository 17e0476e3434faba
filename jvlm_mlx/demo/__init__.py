"""The demo model: a very small Jina-VLM, and the labeled images it was trained on."""
