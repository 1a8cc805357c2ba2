"""Adapters to model families: how each encodes prompts, denoises and decodes. One file each."""
