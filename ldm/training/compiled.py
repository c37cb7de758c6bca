"""torch.compile of the UNet's blocks, where a run is long enough to earn back what that takes."""

import logging
import statistics
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ldm.checkpoint.files import read_json, write_json
from ldm.training.steps import StepCallback

log = logging.getLogger(__name__)

FILE = "compile.json"  # in a run: the step from which on it is compiled
# Share of a step that it saves, and seconds that it takes: on a CPU as `python -m bench.speed
# --only compiled` gave it on the embedded base. On others they are assumed, not measured.
GAIN = {"cpu": 0.02}
SECONDS = {"cpu": 36.0}
USUAL_GAIN, USUAL_SECONDS = 0.15, 60.0


def compile_blocks(unet: nn.Module) -> int:
    """Compile each transformer block of a UNet in place, as its first calls ask for it; return how
    many there are.

    Equal blocks share what is compiled ("regional compilation",
    https://docs.pytorch.org/tutorials/recipes/regional_compilation.html). State dicts stay as they
    are. Where networks are only looked at (`in_eval_mode`) nothing compiled is used.
    """
    import torch._dynamo
    from diffusers.models.attention import BasicTransformerBlock

    torch._dynamo.config.recompile_limit = 64  # a UNet has blocks of several widths
    blocks = [part for part in unet.modules() if isinstance(part, BasicTransformerBlock)]
    for block in blocks:
        block.compile()
    return len(blocks)


class CompiledBlocks(StepCallback):
    """Compiles the UNet's blocks from the first step on, or once a run's steps are known to pay.

    always: from the first step. Else the TIMED steps after the first `warm` are timed, and what is
    decided then stands in RUN/compile.json: a run that goes on does what it did.
    """

    TIMED = 4

    def __init__(self, run: Path, always: bool, warm: int) -> None:
        super().__init__()
        self.file = Path(run) / FILE
        self._warm = warm
        self._from: int | None = 0 if always else None  # the step after which it is compiled
        self._decided = always
        self._ends: list[float] = []  # of the steps that are timed

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._decided:
            told = trainer.strategy.broadcast(read_json(self.file))
            if told is not None:
                self._from, self._decided = told["from_step"], True
            self._warm = max(self._warm, trainer.global_step + 1)  # a resumed run is cold too
        if self._from is not None and self._from <= trainer.global_step:
            self._compile(pl_module)

    def on_step(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        if self._decided:
            if step == self._from:
                self._compile(pl_module)
            return
        if step >= self._warm:
            self._ends.append(time.perf_counter())
        if len(self._ends) > self.TIMED:
            self._decide(trainer, pl_module, step)

    def _decide(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        pairs = zip(self._ends, self._ends[1:], strict=False)
        seconds = statistics.median(later - sooner for sooner, later in pairs)
        kind, left = pl_module.device.type, trainer.max_steps - step
        saved = left * seconds * GAIN.get(kind, USUAL_GAIN)
        pays = saved > SECONDS.get(kind, USUAL_SECONDS)
        pays = trainer.strategy.broadcast(pays)  # clocks differ
        self._from, self._decided = step if pays else None, True
        if trainer.is_global_zero:
            log.info(
                "%s: %d steps of %.3g s are left, of which compiled blocks would save about %.0f s,"
                " and compiling takes about %.0f s",
                "torch.compile from here on" if pays else "no torch.compile",
                *(left, seconds, saved, SECONDS.get(kind, USUAL_SECONDS)),
            )
            write_json(self.file, {"from_step": self._from, "seconds_per_step": seconds})
        if pays:
            self._compile(pl_module)

    def _compile(self, pl_module: Any) -> None:
        compile_blocks(pl_module.trained["unet"])
