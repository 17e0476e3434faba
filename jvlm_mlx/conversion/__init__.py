"""From a checkpoint of any layout to this project's own; comparison of the two."""
