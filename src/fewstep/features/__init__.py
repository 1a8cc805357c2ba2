"""Networks whose features pictures are compared in."""
