"""`main.py` in which a process meets its end at a certain moment, for tests.

TROUBLE="RANK WHERE WHAT" python tests/training/troubled.py --base ...
WHERE: 3 (before that step) | class-images | start (of `main`). WHAT: kill (SIGKILL) | raise |
interrupt (Ctrl-C at a terminal: SIGINT to all). Or, with live class images, WHERE: the batch of
them that is not made, WHAT: stop (SIGTERM when it is waited for).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import main
from ldm.sampling import prior
from ldm.sampling.live import LiveClassImages
from ldm.sampling.prior import ClassImageMaker
from ldm.training import DreamBoothModule


def meet(what: str) -> None:
    sys.stderr.write(f"TROUBLE {time.time()}\n")
    sys.stderr.flush()
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "interrupt":
        os.killpg(0, signal.SIGINT)
        time.sleep(0.1)  # in which it arrives
        return
    raise RuntimeError("a cosmic ray")


def arrange(where: str, what: str) -> None:
    step, save, train = DreamBoothModule.training_step, prior._save, main.train

    def training_step(module: DreamBoothModule, batch: Any, batch_idx: int) -> Any:
        if batch[0]["step"] + 1 == int(where):
            meet(what)
        return step(module, batch, batch_idx)

    def save_picture(*arguments: Any) -> None:
        save(*arguments)
        meet(what)

    def start(arguments: Any) -> None:
        meet(what)
        train(arguments)

    if where == "class-images":
        vars(prior)["_save"] = save_picture
    elif where == "start":
        vars(main)["train"] = start
    else:
        setattr(DreamBoothModule, "training_step", training_step)  # noqa: B010


def stop_while_waiting(number: int, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have a signal come in while this batch of live class images, never made, is waited for."""
    make, outcome = ClassImageMaker.make, LiveClassImages._outcome
    waiting = threading.Event()

    def made(maker: ClassImageMaker, which: int) -> Any:
        if which == number:
            waiting.wait(60)
        return make(maker, which)

    def awaited(source: LiveClassImages, which: int) -> Any:
        if which == number:
            os.kill(os.getpid(), signal.SIGTERM)
        got = outcome(source, which)
        if which == number:
            waiting.set()
        return got

    put(ClassImageMaker, "make", made)
    put(LiveClassImages, "_outcome", awaited)


if __name__ == "__main__":
    rank, where, what = os.environ["TROUBLE"].split()
    if os.environ.get("LOCAL_RANK", "0") == rank:
        if what == "stop":
            stop_while_waiting(int(where))
        else:
            arrange(where, what)
    sys.exit(main.main())
