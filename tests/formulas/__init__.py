"""One file per module of losses: its formula written out anew (`check`), and mutations it must notice."""
