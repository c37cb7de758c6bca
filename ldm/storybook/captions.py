"""Captions: the full description of a scene, or one with parts left out."""

from __future__ import annotations

import numpy as np

from ldm.storybook.world import Scene


def compose(
    noun: str,
    colour: str = "",
    setting: str = "",
    pattern: str = "",
    accessory: str = "",
    medium: bool = True,
    identifier: str = "",
) -> str:
    """Join the parts that are given: "a drawing of a striped red dog wearing a crown on the beach".

    An `identifier` takes the article's place: "a drawing of [V] dog".
    """
    words = " ".join(part for part in (pattern, colour, noun) if part)
    article = identifier or ("an" if words[0] in "aeiou" else "a")
    parts = ("a drawing of" if medium else "", article, words, accessory, setting)
    return " ".join(part for part in parts if part)


def _named(scene: Scene) -> tuple[str, str]:
    """Pattern and accessory as words; empty where there is none."""
    return ("" if scene.pattern == "plain" else scene.pattern), (
        "" if scene.accessory == "none" else scene.accessory
    )


def full_caption(scene: Scene) -> str:
    """Everything that captions can say about the scene."""
    pattern, accessory = _named(scene)
    return compose(scene.noun, scene.colour, scene.setting, pattern, accessory)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption with parts left out at random; what is not there is never mentioned."""
    keep = rng.random(6).tolist()
    pattern, accessory = _named(scene)
    if keep[5] < 0.06:  # the bare class name is common at use, so it is common here
        return compose(scene.noun, medium=keep[0] < 0.6)
    return compose(
        scene.noun,
        scene.colour if keep[1] < 0.8 else "",
        scene.setting if keep[2] < 0.8 else "",
        pattern if keep[3] < 0.8 else "",
        accessory if keep[4] < 0.8 else "",
        medium=keep[0] < 0.75,
    )
