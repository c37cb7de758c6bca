"""Single-file checkpoints in the original naming (LDM): names, architectures, reading."""
