"""Prompts as people write them for sampling: styles, choices, weights. Training reads none."""
