"""A run that is under way, shown: on the terminal, as a page, and in TensorBoard and W&B."""
