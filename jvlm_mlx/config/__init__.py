"""What a checkpoint's JSON files say, as dataclasses without silent defaults."""
