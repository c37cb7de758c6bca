"""The embedded world: a renderer of storybook pictures with captions and subjects."""

from ldm.storybook.captions import caption, compose, full_caption
from ldm.storybook.parts import Design
from ldm.storybook.subjects import (
    SUBJECTS,
    Subject,
    heldout_scenes,
    random_subject,
    subject_caption,
    subject_scene,
    training_scenes,
)
from ldm.storybook.world import (
    ACCESSORIES,
    COLOURS,
    NOUNS,
    PATTERNS,
    SETTINGS,
    Scene,
    held_out,
    random_design,
    random_pose,
    random_scene,
    render,
)

__all__ = [
    "ACCESSORIES",
    "COLOURS",
    "NOUNS",
    "PATTERNS",
    "SETTINGS",
    "SUBJECTS",
    "Design",
    "Scene",
    "Subject",
    "caption",
    "compose",
    "full_caption",
    "held_out",
    "heldout_scenes",
    "random_design",
    "random_pose",
    "random_scene",
    "random_subject",
    "render",
    "subject_caption",
    "subject_scene",
    "training_scenes",
]
