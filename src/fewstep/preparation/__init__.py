"""From whatever a source gives to checked, split, sharded images: one pass, nothing lost silently."""
