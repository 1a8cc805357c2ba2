"""Prefect flows over dvc.yaml, which stays the only description of the chain."""
