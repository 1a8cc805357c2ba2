"""From whatever a source gives to checked, split, sharded pictures: one pass, nothing lost silently."""
