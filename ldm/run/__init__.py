"""One run from end to end: what `main.py` puts together out of a configuration."""
