"""The OpenAI-compatible server: requests, responses, images of strangers, scheduling, routes."""
