"""One module per class, each with TRAITS (choices by name), SIZES (names) and `draw`."""

from ldm.storybook.drawings import car, cat, cup, dog, fish, house, robot, tree

DRAWINGS = {
    "dog": dog,
    "cat": cat,
    "robot": robot,
    "car": car,
    "house": house,
    "cup": cup,
    "fish": fish,
    "tree": tree,
}
