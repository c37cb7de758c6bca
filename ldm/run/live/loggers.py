"""Where a run's numbers and grids are shown: TensorBoard and perhaps W&B."""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ldm.checkpoint.files import read_json
from ldm.config import Config, flat, to_yaml
from ldm.evaluation.gates import REPORTING
from ldm.evaluation.measured import fidelity_of
from ldm.evaluation.rows import places_of
from ldm.evaluation.terms import first_of, full_name, in_order
from ldm.export import ABOUT
from ldm.run.measure.results import EXPORT, read_all
from ldm.run.memory.prediction import GIB
from ldm.run.settings import filled
from ldm.training.loggers import Guarded, Wandb

log = logging.getLogger(__name__)


def build_loggers(config: Config, run: Path, start: int | None) -> list[Logger]:
    """TensorBoard and perhaps W&B; nothing is written or sent yet.

    start: the step that a resumed run goes on from (None: a new run). TensorBoard forgets what
    comes after it; W&B goes on in the same run, which the run folder's name stands for.
    """
    purge = None if start is None else start + 1
    loggers: list[Logger] = [
        TensorBoardLogger(
            run.parent, name=run.name, version="", default_hp_metric=False, purge_step=purge
        )
    ]
    if config.logger.wandb:
        loggers.append(
            Wandb(
                save_dir=run,
                offline=config.logger.offline,
                project=config.logger.project,
                name=run.resolve().name,
                id=wandb_id(run),
                resume="allow",
                config=asdict(config),
            )
        )
    return loggers


def wandb_id(run: Path) -> str:
    """W&B's id of a run folder: its name, without what W&B does not take in an id."""
    return re.sub(r"[/\\#?%:\s]", "-", run.resolve().name)[:128]


class Texts(pl.Callback):
    """Gives the loggers the merged configuration and the prompts, as texts."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        config = self.config
        prompts = {
            "subject": filled(config, list(config.subject.prompt)),
            "class": list(config.prior.prompt) if config.prior else [],
            "samples": filled(config, config.samples.prompts if config.samples.every else []),
        }
        listed = "\n".join(
            f"- {kind}: {one}" for kind, several in prompts.items() for one in several
        )
        texts = {"config": "".join(f"    {line}\n" for line in to_yaml(config).splitlines())}
        for logger in guarded(trainer):
            for name, text in {**texts, "prompts": listed}.items():
                logger.log_text(name, text, trainer.global_step)


def guarded(trainer: pl.Trainer) -> list[Guarded]:
    """The trainer's loggers, as make_trainer gives them."""
    return [logger for logger in trainer.loggers if isinstance(logger, Guarded)]


def log_end(
    config: Config,
    run: Path,
    trainer: pl.Trainer,
    result: Mapping[str, Any],
    losses: Mapping[str, float],
) -> None:
    """Give the loggers what came of a run: settings beside it, a table, the exported model.

    result: what evaluation.json holds; empty where nothing is measured. losses: of the last step;
    empty where none was made. The numbers are those of the chosen, else of the last, snapshot.
    """
    step = trainer.global_step
    snapshots = result.get("snapshots", {})
    chosen = result.get("chosen")
    shown = snapshots.get(str(step if chosen is None else chosen), {})
    numbers = {f"final/{name}": losses[name] for name in losses if name.startswith("loss")}
    numbers |= {f"final/{metric}": shown[metric]["value"] for metric in first_of(shown)}
    settings = {key: value for key, value in flat(config).items() if _is_scalar(value)}
    for logger in guarded(trainer):
        logger.log_end(settings, numbers, step)
        if snapshots:
            logger.log_table("evaluation", *_table(result), step)
            _log_separations(logger, run, step)
        if chosen is not None and _fits(run / EXPORT, config.logger.artifact_gib, logger):
            logger.log_model(run / EXPORT, chosen, read_json(run / EXPORT / ABOUT) or {})


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _table(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: each metric of the base and of each snapshot, with interval and n."""
    columns = ["metric", "name", "model", "chosen", "value", "low", "high", "n"]
    models = {"base": result["base"]}
    models |= {f"step {step}": scores for step, scores in result["snapshots"].items()}
    rows = []
    for metric in in_order({metric for scores in models.values() for metric in scores}):
        for model, scores in models.items():
            if score := scores.get(metric):
                numbers = [score[key] for key in ("value", "low", "high", "n")]
                chosen = model == f"step {result['chosen']}"
                rows.append([metric, full_name(metric), model, chosen, *numbers])
    return columns, rows


def _log_separations(logger: Guarded, run: Path, last: int) -> None:
    """How well likeness to the subject tells what was drawn for its prompts from plain class
    pictures: curves of precision and recall of the base and of each snapshot.

    A subject that is learnt and does not leak has precision 1 at nearly every recall.
    """
    base, measured = read_all(run, last)
    for step, one in {0: base, **measured}.items():
        if one is None or (fidelity := fidelity_of(one.scores[REPORTING])) is None:
            continue
        space = fidelity.rpartition("/")[2]
        kinds = {"subject": f"fidelity/{space}", "class": f"pres/{space}"}
        found = [
            (about == "subject", one.rows[place][column])
            for about, column in kinds.items()
            for place in places_of(one.rows, about, REPORTING)
            if column in one.rows[place]
        ]
        labels, scores = [label for label, _ in found], [score for _, score in found]
        if len({*labels}) == 2:
            logger.log_separation(
                f"evaluation/subject_told_from_class/{space}", labels, scores, step
            )


def _fits(folder: Path, gib: float, logger: Guarded) -> bool:
    """Whether W&B is to have an export: it is there and no larger than asked for."""
    if not isinstance(logger.logger, Wandb) or not gib or not folder.is_dir():
        return False
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GIB
    if size > gib:
        log.info(
            "%s takes %.1f GiB, more than logger.artifact_gib=%g: W&B does not get it",
            *(folder, size, gib),
        )
    return size <= gib
