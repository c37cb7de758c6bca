"""Speed and memory beside diffusers' own script and pipeline, and beside the bare networks."""
