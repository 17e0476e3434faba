"""From a folder or a Hub repository to a model and its processor."""
