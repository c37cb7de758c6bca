"""Subject-driven fine-tuning of Stable Diffusion models."""
