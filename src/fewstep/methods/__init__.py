"""Distillation methods: one file per method, with its `training.Method` and its parameters."""
