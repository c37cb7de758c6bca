"""Metrics in words that need no manual, in the order they are told."""

import re
from collections.abc import Container
from dataclasses import dataclass

SPACES = {"oracle": "oracle", "dino": "DINO", "clip": "CLIP"}
UP, DOWN = "higher is better", "lower is better"

GROUPS = {
    "subject": (
        "The subject is there",
        "Pictures whose prompt holds the identifier, against the subject's own pictures.",
    ),
    "prompt": (
        "The prompt is followed",
        "The same pictures, against the rest of their prompt.",
    ),
    "diversity": (
        "Pictures differ",
        "Mean distance between pictures of one prompt. Compare with the base: what has learnt one "
        "subject draws less varied pictures of that subject, but not of its class.",
    ),
    "copying": (
        "Nothing is copied",
        "How close a picture is to one training picture; normal is what 95 % of the subject's new "
        "pictures stay below.",
    ),
    "class": (
        "The class is kept",
        "Pictures of the bare class prompt: they must stay what the base draws.",
    ),
    "unrelated": ("Other things are kept", "Pictures of prompts that name other things."),
    "loss": (
        "Held-out loss",
        "Of the denoiser, at fixed noise and timesteps, on pictures not trained on.",
    ),
    "other": ("More", ""),
}


@dataclass(frozen=True)
class Term:
    """A metric as it is shown. better: UP, DOWN or "" (neither); share: told in percent."""

    name: str
    group: str
    better: str
    share: bool = False


# Pattern of the metric -> group, name, direction, share. {0} is what the pattern's star matched.
# The names of the paper (arXiv 2208.12242, section 4.2) stand first where a metric is one of its.
_TERMS: dict[str, tuple[str, str, str, bool]] = {
    "subject/identity": ("subject", "recognised as the subject", UP, True),
    "subject/fidelity/oracle": ("subject", "likeness to the subject (oracle)", UP, False),
    "subject/fidelity/dino": ("subject", "DINO: likeness to the subject", UP, False),
    "subject/fidelity/clip": ("subject", "CLIP-I: likeness to the subject", UP, False),
    "subject/class": ("subject", "recognised as its class", UP, True),
    "subject/none": ("subject", "nothing recognisable", DOWN, True),
    "subject/prompt/clip": ("prompt", "CLIP-T: likeness to the prompt", UP, False),
    "subject/prompt/oracle": ("prompt", "words of the prompt that are drawn", UP, True),
    "subject/diversity/lpips*": ("diversity", "DIV: LPIPS{0}, subject prompts", UP, False),
    "subject/diversity/*": ("diversity", "subject prompts ({0})", UP, False),
    "class/diversity/lpips*": ("diversity", "LPIPS{0}, class prompt", UP, False),
    "class/diversity/*": ("diversity", "class prompt ({0})", UP, False),
    "subject/copied/*": ("copying", "closer to a training picture than normal ({0})", DOWN, True),
    "subject/copying/*": ("copying", "closeness to the nearest, above normal ({0})", DOWN, False),
    "subject/*": ("prompt", "{0} as told", UP, True),
    "class/identity": ("class", "leak: recognised as the subject", DOWN, True),
    "class/pres/dino": ("class", "PRES: likeness to the subject (DINO)", DOWN, False),
    "class/pres/*": ("class", "PRES: likeness to the subject ({0})", DOWN, False),
    "class/class": ("class", "recognised as its class", UP, True),
    "class/none": ("class", "nothing recognisable", DOWN, True),
    "class/drift/*": ("class", "drift: distance from the base's picture ({0})", DOWN, False),
    "class/kid/*": ("class", "KID: from the base's pictures ({0})", DOWN, False),
    "class/change/*": ("class", "change of how often each {0} is drawn", DOWN, False),
    "unrelated/identity": ("unrelated", "leak: recognised as the subject", DOWN, True),
    "unrelated/drift/*": (
        "unrelated",
        "drift: distance from the base's picture ({0})",
        DOWN,
        False,
    ),
    "unrelated/kid/*": ("unrelated", "KID: from the base's pictures ({0})", DOWN, False),
    "unrelated/none": ("unrelated", "nothing recognisable", DOWN, True),
    "unrelated/*": ("unrelated", "{0} as told", UP, True),
    "loss/subject": ("loss", "of the subject's held-out pictures", DOWN, False),
    "loss/class": ("loss", "of the base's class pictures", DOWN, False),
}
_ORDER = list(_TERMS)
# What to look at first: of each line the first metric that was measured.
HEADLINES = (
    ("subject/identity", "subject/fidelity/dino", "subject/fidelity/clip"),
    ("subject/fidelity/oracle", "subject/fidelity/clip"),
    ("subject/setting", "subject/prompt/clip"),
    ("subject/accessory", "subject/prompt/oracle"),
    ("subject/diversity/lpips_vgg16", "subject/diversity/lpips_alex", "subject/diversity/oracle"),
    ("subject/copied/oracle", "subject/copied/dino", "subject/copied/clip"),
    ("class/identity", "class/pres/dino", "class/pres/clip"),
    ("class/class", "class/pres/dino"),
    ("class/change/colour", "class/kid/dino", "class/kid/clip"),
    ("class/drift/oracle", "class/drift/dino", "class/drift/clip"),
    ("unrelated/identity", "unrelated/drift/dino", "unrelated/drift/clip"),
)


def _pattern_of(metric: str) -> tuple[str, str] | None:
    """The first pattern that a metric matches, and what its star (one level) stands for."""
    for pattern in _ORDER:
        found = re.fullmatch(re.escape(pattern).replace(r"\*", "([^/]*)"), metric)
        if found:
            return pattern, found[1] if found.groups() else ""
    return None


def term(metric: str) -> Term:
    """How a metric is shown; one that is not known here is shown by its own name."""
    found = _pattern_of(metric)
    if found is None:
        return Term(metric, "other", "")
    group, name, better, share = _TERMS[found[0]]
    star = SPACES.get(found[1], found[1].replace("_", " "))
    return Term(name.format(star), group, better, share)


def full_name(metric: str) -> str:
    """A name that also says of which pictures, for where there are no groups."""
    told = term(metric)
    if told.group == "diversity":
        return f"diversity, {told.name}"
    about = {"class": "class, ", "unrelated": "other things, "}.get(metric.split("/")[0], "")
    return about + told.name


def first_of(metrics: Container[str]) -> list[str]:
    """What to look at first of some metrics: of each line of HEADLINES the first that is there."""
    first = [next((metric for metric in line if metric in metrics), None) for line in HEADLINES]
    return list(dict.fromkeys(metric for metric in first if metric))


def in_order(metrics: set[str]) -> list[str]:
    """Metrics in the order of groups, and within these as above, then by name."""
    groups = list(GROUPS)

    def place(metric: str) -> tuple[int, int, str]:
        found = _pattern_of(metric)
        among = _ORDER.index(found[0]) if found else len(_ORDER)
        return groups.index(term(metric).group), among, metric

    return sorted(metrics, key=place)


def figure(value: float, share: bool) -> str:
    """A number as people read it: a share in percent, else three digits that matter."""
    if share:
        return f"{100 * value:.1f} %"
    size = abs(value)
    if size == 0 or size >= 0.01:
        return f"{value:.3f}"
    return f"{value:.4f}" if size >= 0.001 else f"{value:.1e}"


def interval(low: float, high: float, share: bool) -> str:
    """A 95 % interval, shorter than its value."""
    if share:
        return f"{100 * low:.0f} to {100 * high:.0f}"
    return f"{figure(low, False)} to {figure(high, False)}"
