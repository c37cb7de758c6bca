"""Grids: pictures of the same prompts and seeds, compared along up to three axes."""
