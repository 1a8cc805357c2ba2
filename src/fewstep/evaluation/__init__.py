"""How good a model is, and how fast: pure figures over images and features."""
