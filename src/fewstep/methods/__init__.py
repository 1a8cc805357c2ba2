"""What is learned: one file per method, each a `training.Method` and its parameters."""
