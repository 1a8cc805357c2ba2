"""Models of the chain as what the ecosystem loads."""
