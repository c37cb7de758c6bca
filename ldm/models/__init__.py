"""The base model (tokenizer, text encoder, VAE, UNet, scheduler) and what of it is trained."""
