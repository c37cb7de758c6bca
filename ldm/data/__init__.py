"""From a folder of pictures to batches of latents: images, prompts, latents, dataset."""
