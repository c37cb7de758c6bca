"""A run, or any model, written for other tools: formats, model card, the hub."""
