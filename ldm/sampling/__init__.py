"""Pictures from prompts: samplers, guidance, provenance, grids, class images."""
