"""Numbers for what was learnt and what was kept, beside the untouched base's."""
