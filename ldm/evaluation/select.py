"""Which snapshot is best: gates that it must pass, then the highest fidelity among those that do.

Fidelity alone picks the wrong one: without prior preservation the paper's DINO score *rises* while
the class collapses into the subject (arXiv 2208.12242, Table 3). So what the base knew, what
prompts say and whether training pictures are copied is asked first.

A gate breaks only where the 95 % interval lies wholly beyond its limit, so that noise alone refuses
nothing; but that the subject was learnt has to be shown: there the interval's lower end counts.
Everything here works on the choosing half of the prompts and on nothing but `Measured`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.measured import Measured, Scores, fidelity_of
from ldm.evaluation.metrics import Score
from ldm.evaluation.rows import places_of

CHOOSING, REPORTING = "choosing", "reporting"


@dataclass(frozen=True)
class Margins:
    """How far a snapshot may be from the base, and how near to the subject it must come."""

    # Share of the way from the base's fidelity to that of real pictures. A wrong or missing class
    # noun gets .454 and .303 DINO where the right one gets .744 (arXiv 2208.12242, Table 4), and
    # Textual Inversion .569 where real pictures get .774 (Table 1).
    learnt: float = 0.5
    identity: float = 0.5  # share of subject pictures in which the oracle sees the subject
    prompt: float = 0.15  # loss in the share of words that are read off; in CLIP-T elsewhere
    subject_class: float = 0.1  # loss in the share of subject pictures with the right class
    leak: float = 0.05  # share of plain class pictures, and of other things', that show the subject
    pres: float = 0.1  # rise of the class pictures' mean cosine to the subject
    accuracy: float = 0.1  # loss in the share of class, and of other, pictures that are as told
    change: float = 0.15  # total variation of class pictures' attributes, beyond the floor
    kid: float = 0.0
    diversity: float = 0.75  # class pictures' mean distance, as a share of the base's
    drift: float = 0.5  # of other things' pictures from the base's, as mean cosine distance
    copied: float = 0.5  # share of subject pictures nearer to a training picture than is normal
    subject_diversity: float = 0.25  # mean distance within a prompt, as a share of real pictures'
