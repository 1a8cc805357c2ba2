"""Evaluation of models: quality figures computed from images and features, and speed."""
