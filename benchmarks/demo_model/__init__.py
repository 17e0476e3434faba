"""How the demo model was made: its training data, initialization, pretraining and accuracy."""
