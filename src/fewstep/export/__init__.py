"""Exports models of the chain to formats that other software loads."""
