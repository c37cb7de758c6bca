"""How much memory a run takes, and how it gets by with what there is."""
