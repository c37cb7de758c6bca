"""Live class images: the frozen base makes new ones while training runs, in the background.

Image k is always the same picture, bit for bit the one that `make_class_images` would write under
that number. Which of them a sample uses is a function of the run's seed and the sample's turn, and
the step waits for them; so nothing depends on timing, and nothing has to be kept to go on later.
"""

import atexit
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps

from ldm.data.dataset import Sample
from ldm.data.encoding import Moments, encode_pixels
from ldm.data.images import to_tensor
from ldm.data.sizes import sizes_of_whole
from ldm.errors import UserError
from ldm.randomness import generator
from ldm.sampling.generate import Progress
from ldm.sampling.prior import ClassImageMaker

Exchange = Callable[[int, Any], Any]  # (rank that gives it, payload there, else None) -> payload

_POLL = 0.1  # seconds between two looks at whether the user asked to stop
_GONE = "the thread that makes class images is not in this process: close() or a fork ended it"


class _Closed(Exception):
    """Ends the background thread in the middle of a batch."""


@dataclass(frozen=True)
class Ring:
    """Which class images are in use, and which of them each turn takes.

    Turns come in blocks of `count` (R). Block b uses the images lo .. lo + R - 1, each once, in an
    order of its own, where lo = b * R // uses: R / uses new images per block, and image k serves in
    exactly `uses` successive blocks, but those of the first ring in 1 to `uses`.
    """

    count: int
    uses: int = 4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"prior.count: {self.count} is not at least 1")
        if self.uses < 1:
            raise UserError(f"prior.uses: {self.uses} is not at least 1")

    def lowest(self, block: int) -> int:
        """Return the first image of a block's window."""
        return block * self.count // self.uses

    def window(self, turns: range) -> range:
        """Return the images that the blocks of these turns (at least one) use."""
        first, last = turns[0] // self.count, turns[-1] // self.count
        return range(self.lowest(first), self.lowest(last) + self.count)

    def image(self, seed: int, turn: int) -> int:
        """Return the image that this turn takes."""
        block, place = divmod(turn, self.count)
        order = torch.randperm(self.count, generator=generator(seed, "class_picture", block))
        return self.lowest(block) + int(order[place])


class LiveClassImages:
    """A source (`ldm.data.dataset.Source`) of class images that are made as they are needed.

    Not for a `DataLoader` with workers: thread and images belong to the process that trains.
    `close()` it when training is over.
    """

    def __init__(
        self,
        maker: ClassImageMaker,
        ring: Ring,
        *,
        mirror: bool = False,
        rank: int = 0,
        world: int = 1,
        exchange: Exchange = lambda owner, payload: payload,
        check: Callable[[], None] = lambda: None,
        report: Progress = lambda done, total: None,
    ) -> None:
        """`maker` has a base of its own (`frozen_copy`), which nothing else may move or change.

        Of `world` processes this one makes every `world`-th batch;
        `exchange(owner, payload)` gives rank `owner`'s payload, which can be pickled, to all, and
        all call it in the same order. `check()` is called while waiting, several times a second,
        by the process that makes what is waited for: what it raises, all raise. `report(pictures
        there, in all)` tells how far the first filling is.
        """
        self.maker, self.ring = maker, ring
        self.mirror = mirror
        self._rank, self._world, self._exchange = rank, world, exchange
        self._check, self._report = check, report
        self._kept: dict[int, Moments] = {}  # image -> mean and std, [V, C, h, w] each
        self._next = 0  # the batch to be received next
        self._change = threading.Condition()  # guards what follows
        self._made: dict[int, Moments] = {}  # own batches that nobody asked for yet
        self._limit = 0  # images from here on are not made yet
        self._failure: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def ready(self, turns: range) -> None:
        """Wait until all images are there that the blocks of these turns use.

        Raises what stopped the making of them, in whichever process; ValueError for turns whose
        images are dropped by now.
        """
        if not turns:
            return
        if self._closed:
            raise RuntimeError("class images: asked for after close()")
        window, batch = self.ring.window(turns), self.maker.batch
        filling = self._thread is None
        if filling:
            self._start(window.start // batch)
        elif window.start < min(self._kept, default=0):
            raise ValueError(f"turn {turns[0]}: its class images are dropped, turns only rise")
        for image in [image for image in self._kept if image < window.start]:
            del self._kept[image]
        self._allow(turns, window)
        for number in range(self._next, -(-window.stop // batch)):
            if filling:
                self._report(max(0, number * batch - window.start), len(window))
            for image, moments in enumerate(
                zip(*self._receive(number), strict=True), number * batch
            ):
                if image >= window.start:
                    self._kept[image] = moments
            self._next = number + 1
        if filling:
            self._report(len(window), len(window))

    def take(self, seed: int, step: int, turn: int, index: int) -> Sample:
        """The sample of this turn, for which `ready` was called."""
        image = self.ring.image(seed, turn)
        if image not in self._kept:
            raise ValueError(f"class image {image} is not there: ready() comes before take()")
        draw = generator(seed, "variant", step, index)
        variant = int(torch.randint(1 + self.mirror, (), generator=draw))
        mean, std = self._kept[image]
        size = self.maker.settings["size"]
        return Sample(
            mean=mean[variant],
            std=std[variant],
            sizes=sizes_of_whole(size, size, 1)[0],
            prompt=self.maker.prompt,
            name=f"class {image:05d}",
        )

    def close(self) -> None:
        """End the thread, within one pass through a network, and drop the images."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        atexit.unregister(self.close)
        self._made.clear()
        self._kept.clear()

    def _start(self, batch: int) -> None:
        """Start to make this process's share of the batches from `batch` on."""
        self._next = batch
        own = batch + (self._rank - batch) % self._world
        self._thread = threading.Thread(
            target=self._work, args=(own, torch.get_num_threads()), name="class images", daemon=True
        )
        # A daemon keeps no process alive, but one that computes when the interpreter is taken down
        # aborts it: end it before.
        atexit.register(self.close)
        self._thread.start()

    def _allow(self, turns: range, window: range) -> None:
        """Let the thread make what these turns need, and what the next block will."""
        ahead = self.ring.lowest(turns[0] // self.ring.count + 1) + self.ring.count
        with self._change:
            self._limit = max(self._limit, window.stop, ahead)
            self._change.notify_all()

    def _receive(self, number: int) -> Moments:
        """Return batch `number`, mean and std [batch, V, C, h, w], from the process it is made in.

        Trouble is exchanged as well: no process waits for another that has given up.
        """
        owner, payload = number % self._world, None
        if owner != self._rank:
            payload = self._exchange(owner, None)
        else:
            payload = self._outcome(number)
            self._exchange(owner, _portable(payload))
        if isinstance(payload, BaseException):
            raise payload
        return payload

    def _outcome(self, number: int) -> Moments | BaseException:
        """Wait for an own batch: return it, or what came in between."""
        try:
            while True:
                with self._change:
                    self._change.wait_for(lambda: number in self._made or self._ended, _POLL)
                    if number in self._made:
                        return self._made.pop(number)
                    if self._ended:
                        raise self._failure or RuntimeError(_GONE)
                self._check()
        except BaseException as error:
            return error

    @property
    def _ended(self) -> bool:
        return self._closed or self._thread is None or not self._thread.is_alive()

    def _work(self, first: int, threads: int) -> None:
        """The thread: make the own batches, from `first` on, in rising order."""
        torch.set_num_threads(threads)  # kept per thread, and it shows in the last bits
        if self.maker.base.device.type == "cuda":
            torch.cuda.set_device(self.maker.base.device)  # per thread too
        try:
            with self._stoppable():
                for number in itertools.count(first, self._world):
                    self._await_turn(number * self.maker.batch)
                    made = self._encoded([picture for picture, _ in self.maker.make(number)])
                    with self._change:
                        self._made[number] = made
                        self._change.notify_all()
        except _Closed:
            pass
        except BaseException as error:
            error.add_note(f"while class images of {self.maker.prompt!r} were made")
            self._failure = error

    def _await_turn(self, image: int) -> None:
        """Wait until this image may be made."""
        with self._change:
            self._change.wait_for(lambda: self._closed or image < self._limit)
        if self._closed:
            raise _Closed

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let `close` end this thread before any pass through one of the networks.

        A batch of many steps takes minutes on a CPU; a user who stops the run would wait for it.
        """
        base, thread = self.maker.base, threading.current_thread()

        def stop(*_: Any) -> None:
            if self._closed and threading.current_thread() is thread:
                raise _Closed

        parts = (base.unet, base.vae.encoder, base.vae.decoder)
        hooks = [part.register_forward_pre_hook(stop) for part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _encoded(self, pictures: list[Image.Image]) -> Moments:
        """Mean and std, [N, V, C, h, w]; variant 1, if there is one, is the mirror image.

        A picture is encoded without others, so its latents depend on nothing but it.
        """
        flips = (False, True) if self.mirror else (False,)
        moments = []
        for picture in pictures:
            squares = [to_tensor(ImageOps.mirror(picture) if flip else picture) for flip in flips]
            moments.append(encode_pixels(self.maker.base.vae, torch.stack(squares)))
        # Contiguous: the VAE answers in channels-last, and a copy from another process may not be.
        mean = torch.stack([mean for mean, _ in moments]).contiguous()
        std = torch.stack([std for _, std in moments]).contiguous()
        return mean, std


def _portable(payload: Any) -> Any:
    """Return the payload, or for an exception that cannot be sent, one that says the same."""
    if not isinstance(payload, BaseException):
        return payload
    try:
        pickle.loads(pickle.dumps(payload))
    except Exception:  # whatever its constructor and its attributes do
        return RuntimeError(f"{type(payload).__name__}: {payload}")
    return payload
