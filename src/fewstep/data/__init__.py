"""Prepared data as training reads it: shards, latents and triplets, in keyed order."""
