"""How the embedded base is trained from scratch on the storybook world, stage by stage."""
