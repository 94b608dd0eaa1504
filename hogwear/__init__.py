"""How Hogwear works, a room a file; imports go downwards only, and none of this knows the scripts."""
