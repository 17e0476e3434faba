"""From messages and images to model inputs: numpy and text only, no MLX."""
