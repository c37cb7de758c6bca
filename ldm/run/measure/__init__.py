"""Runs and models measured: asked alike, chosen by it, told of."""
