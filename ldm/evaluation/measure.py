"""From pictures on the disk to numbers: anyone can measure them again.

Metric names are "about/metric/space", as "class/kid/dino": about is "subject", "class" or
"unrelated"; space is that of the features, "oracle", "dino" or "clip".
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.checkpoint.files import sha256_of
from ldm.data.images import load_picture, to_tensor
from ldm.data.prompts import without_identifier
from ldm.errors import UserError
from ldm.evaluation import metrics, rows
from ldm.evaluation.features import Extractor
from ldm.evaluation.lpips import LPIPS
from ldm.evaluation.measured import Measured, Row, Scores, Seen, read_measured, write_measured
from ldm.evaluation.oracle import Oracle, Reading
from ldm.evaluation.pictures import HALVES, files_of, read_asked
from ldm.sampling.generate import Progress

FORMAT = 1  # raise it when the meaning of a metric changes
AT_ONCE = 32  # pictures in memory
LPIPS_PICTURES = 16  # of one prompt, so 120 pairs: those of 512 class images would take hours
FLOOR = ("class/change/", "class/kid/")  # what two draws of one model differ in


class Measurer:
    """Measures pictures beside those of the untouched base and the subject's own.

    identifier: the word that names the subject. training, heldout: the subject's pictures, RGB;
    what is drawn is compared with the held-out ones, or with the training ones where there are
    none (`compared_with`). oracle, extractors, lpips: what there is; metrics that need another are
    left out.
    """

    def __init__(
        self,
        identifier: str,
        training: Sequence[Image.Image],
        heldout: Sequence[Image.Image] = (),
        *,
        oracle: Oracle | None = None,
        extractors: Sequence[Extractor] = (),
        lpips: LPIPS | None = None,
    ) -> None:
        if not training:
            raise ValueError("at least one training picture")
        self.identifier = identifier
        self.oracle = oracle
        self.extractors = {extractor.space: extractor for extractor in extractors}
        self.lpips = lpips
        self.compared_with = "heldout" if heldout else "training"
        self.training = self.look(training)
        self.heldout = self.look(heldout)
        self.references = self.heldout if heldout else self.training
        self._own = {"training": _digest_of(training), "heldout": _digest_of(heldout)}

    def ceiling(self) -> Scores:
        """ "subject/fidelity/<space>" of the subject's own pictures among themselves.

        Without self-pairs; empty where only one picture is there to compare with.
        """
        own = {space: drawn for space, drawn in self.references.features.items() if len(drawn) > 1}
        return {f"subject/fidelity/{space}": metrics.ceiling(drawn) for space, drawn in own.items()}

    def measure(
        self,
        folder: Path,
        base: Measured | None = None,
        *,
        losses: Callable[[], Scores] | None = None,
        progress: Progress | None = None,
    ) -> Measured:
        """Measure the pictures that `pictures.draw` made in a folder; write the result there.

        base: of the untouched model; None where that is what is measured, and drift, KID and change
        are left out. losses: gives "loss/subject" and "loss/class"; called only where they are not
        known. What lies in the folder is returned if it was measured of these pictures, with all of
        this. UserError: a picture is missing or damaged, disk not writable.
        """
        asked = read_asked(folder)
        paths = [folder / name for name in files_of(asked)]
        about = self._about(paths, base)
        stored = _stored(folder, about)
        if stored is not None and (losses is None or stored.about["losses"]):
            return stored
        seen = self.look(paths, progress)
        table = rows.rows_of(asked)
        if self.oracle is not None and asked:
            references = self.references.features["oracle"]
            rows.add_readings(
                table, asked, seen, self.oracle.accepts(seen.features["oracle"], references)
            )
        self._add_features(table, seen)
        if base is not None:
            rows.add_drift(table, seen, base.rows, self._seen(base))
        measured = Measured({}, table, {**about, "losses": losses is not None}, folder, seen)
        other = self._of_kind("class", measured, base) | self._of_kind("unrelated", measured, base)
        other |= losses() if losses is not None else {}
        for half in HALVES:
            measured.scores[half] = self._of_kind("subject", measured, None, half) | other
        write_measured(measured)
        return measured

    @torch.no_grad()
    def look(
        self, pictures: Sequence[Path | Image.Image], progress: Progress | None = None
    ) -> Seen:
        """What oracle and extractors see in pictures, in memory or in files, a few at a time."""
        readings: list[Reading] = []
        features: dict[str, list[torch.Tensor]] = defaultdict(list)
        for start in range(0, len(pictures), AT_ONCE):
            part = [_loaded(picture) for picture in pictures[start : start + AT_ONCE]]
            if self.oracle is not None:
                readings += self.oracle.read(part)
            for space, extractor in self.extractors.items():
                features[space] += [extractor([to_tensor(one) for one in part]).double().cpu()]
            if progress is not None:
                progress(start + len(part), len(pictures))
        found = {space: torch.cat(parts).numpy() for space, parts in features.items()}
        if readings:
            own = np.stack([np.asarray(reading.embedding, np.float64) for reading in readings])
            found = {"oracle": own, **found}
        return Seen(readings, found)

    def _about(self, paths: Sequence[Path], base: Measured | None) -> dict[str, Any]:
        """What decides the numbers."""
        kind = type(self.oracle)
        return {
            "format": FORMAT,
            "pictures": _digest_of_files(paths),
            "base": base.about["pictures"] if base is not None else None,
            "identifier": self.identifier,
            **self._own,
            "oracle": f"{kind.__module__}:{kind.__qualname__}" if self.oracle is not None else None,
            "rates": dict(self.oracle.rates) if self.oracle is not None else {},
            "extractors": {space: one.name for space, one in self.extractors.items()},
            "lpips": self.lpips.name if self.lpips is not None else None,
        }

    def _seen(self, measured: Measured) -> Seen:
        """What is seen in pictures measured before: looked at once, and kept."""
        if measured.seen is None:
            measured.seen = self.look([measured.folder / row["file"] for row in measured.rows])
        return measured.seen

    def _add_features(self, table: list[Row], seen: Seen) -> None:
        for space, drawn in seen.features.items():
            training = self.training.features[space]
            rows.add_similarities(table, space, drawn, self.references.features[space])
            heldout = self.heldout.features.get(space, training[:0])
            normal = metrics.normal_nearest(training, heldout)
            if normal is not None:
                rows.add_copying(table, space, drawn, training, normal)
        text = getattr(self.extractors.get("clip"), "text", None)
        prompts = list(dict.fromkeys(row["prompt"] for row in table if row["about"] == "subject"))
        if text is not None and prompts:
            said = [without_identifier(prompt, self.identifier) for prompt in prompts]
            features = dict(zip(prompts, text(said).double().cpu().numpy(), strict=True))
            rows.add_prompt_fidelity(table, seen.features["clip"], features)

    def _of_kind(
        self, kind: str, measured: Measured, base: Measured | None, half: str = ""
    ) -> Scores:
        """The metrics of one kind of pictures: of the rows, and of pictures as sets."""
        table, seen = measured.rows, self._seen(measured)
        places = rows.places_of(table, kind, half)
        scores = rows.column_scores(table, places)
        if kind != "unrelated":
            scores |= rows.diversity_scores(table, places, seen)
            scores |= self._lpips_diversity(measured, places)
        if base is not None:
            theirs = rows.places_of(base.rows, kind)
            attributes = self.oracle.attributes if self.oracle and kind == "class" else ()
            scores |= rows.set_scores(seen, places, self._seen(base), theirs, attributes)
        return {f"{kind}/{name}": score for name, score in scores.items()}

    def _lpips_diversity(self, measured: Measured, places: Sequence[int]) -> Scores:
        """ "diversity/lpips_<net>", of a prompt's first LPIPS_PICTURES pictures."""
        groups = rows.by_prompt(measured.rows, places)
        if self.lpips is None or not groups:
            return {}
        distances = []
        for group in groups:
            files = [measured.rows[place]["file"] for place in group[:LPIPS_PICTURES]]
            drawn = [to_tensor(_loaded(measured.folder / file)) for file in files]
            distances.append(self.lpips(torch.stack(drawn)))
        return {f"diversity/{self.lpips.name}": metrics.diversity(distances)}


def floor_of(second: Measured) -> Scores:
    """What a second draw of the base's class pictures (`pictures.ask_class_again`), measured with
    the first as its base, differs in: what any model's change and KID on class prompts stand on."""
    names = [name for name in second.scores[HALVES[0]] if name.startswith(FLOOR)]
    return {name: second.scores[HALVES[0]][name] for name in names}


def _loaded(picture: Path | Image.Image) -> Image.Image:
    return load_picture(picture) if isinstance(picture, Path) else picture.convert("RGB")


def _stored(folder: Path, about: Mapping[str, Any]) -> Measured | None:
    """What was measured already, where it is of the same pictures with the same means."""
    try:
        stored = read_measured(folder)
    except UserError:  # not measured yet
        return None
    losses = stored.about.get("losses")
    return stored if stored.about == {**about, "losses": losses} else None


def _digest_of(pictures: Sequence[Image.Image]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.size}".encode() + picture.convert("RGB").tobytes())
    return digest.hexdigest()


def _digest_of_files(paths: Sequence[Path]) -> str:
    try:
        digests = [sha256_of(path) for path in paths]
    except OSError as error:
        raise UserError(
            f"picture {error.filename} cannot be read ({error.strerror}); evaluate again to draw "
            "what is missing"
        ) from error
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
