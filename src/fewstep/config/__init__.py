"""Typed parameters: one module per section of params.yaml, one reader, one error format."""
