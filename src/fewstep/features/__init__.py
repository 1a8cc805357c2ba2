"""Feature networks: images are compared by their features."""
