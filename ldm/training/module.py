"""The training module: one optimizer step on instance and class samples together.

It holds what is trained and nothing else, so checkpoints hold nothing else: the VAE is not here
(the pictures' latents are cached) and frozen text encoders are kept beside the module, not inside.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.errors import UserError
from ldm.models.text import TextEmbedding, TextEncoders
from ldm.models.unet import predict
from ldm.objective import Objective, combine, mean_of
from ldm.randomness import seed_of
from ldm.training.alone import FusedBackward, SteppedAlone, norm_of, one_by_one
from ldm.training.guard import FiniteGuard
from ldm.training.optim import (
    OptimizerSettings,
    build_optimizer,
    counts_of,
    page_out,
    restore_counts,
    settle,
    start_afresh,
)
from ldm.training.phases import (
    EMBEDDING,
    TEXT_ENCODER,
    THROUGHOUT,
    Phases,
    groups_of,
    keep_rows_only,
    places_of,
    restore_rows,
)
from ldm.training.profile import Part, untimed
from ldm.training.rates import build_schedule, set_rates

BAD_STEPS = "steps_not_finite"  # in a checkpoint


class Teacher(Protocol):
    """What class samples are to be predicted as."""

    def to(self, device: torch.device) -> Any:
        """Move to where it will be called."""

    def __call__(self, noisy: Tensor, t: Tensor, prompts: list[str], sizes: Tensor) -> Tensor:
        """[B, C, h, w], [B], B prompts and [B, 6] -> [B, C, h, w], without gradients."""


class DreamBoothModule(pl.LightningModule):
    """DreamBooth fine-tuning (arXiv 2208.12242) of a UNet and perhaps its text encoders.

    modules: what is trained, {"unet": ...} or with the text encoders {"unet": ...,
    "text_encoder": ..., "text_encoder_2": ...}, in float32 or bfloat16. text: turns prompts into
    embeddings; encoders that are not among `modules` are frozen, and each prompt is encoded once.
    prior_weight: of the class samples' mean loss in step 0, 1, ... teacher: what class samples are
    to be predicted as; None: as the data says. seed: of every draw in training.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        text: TextEncoders,
        objective: Objective,
        optimizer: OptimizerSettings,
        *,
        phases: Phases = THROUGHOUT,
        prior_weight: Callable[[int], float] = lambda step: 1.0,
        teacher: Teacher | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(modules)
        self.text = text  # no module, so frozen encoders are not registered as parts
        self._embeddings: dict[str, TextEmbedding] = {}  # prompt -> [1, L, D] of encoders at rest
        self.objective = objective
        self.optimizer_settings = optimizer
        self.phases = phases
        self.prior_weight = prior_weight
        self.teacher = teacher  # frozen, and no part either
        self.seed = seed
        self.guard = FiniteGuard()
        self._scaled = False  # by a gradient scaler
        self._alone: SteppedAlone | None = None  # where the optimizer steps parameters one by one
        self._fused: FusedBackward | None = None  # and where that is in the backward pass
        self.gradient_norm: Tensor | None = None  # of the last optimizer step, before clipping
        self.weights_are_whole = True  # no step of the optimizer is half done
        self.batch_began = 0.0  # on time.perf_counter, when all callbacks were through
        self.part: Part = untimed  # around each part of a step, for whoever times them
        self._groups = groups_of(modules, self.phases.pivotal > 0)
        self._training_groups: set[str] | None = None  # until the first step begins
        self._counts: list[dict[str, Any]] = []  # of the optimizer, at its beginning
        self._resting: list[Tensor] = []  # the embeddings, while some of their rows train alone
        self._tokens: list[Sequence[int]] = []  # of each embedding the identifiers' places in it
        if EMBEDDING in self._groups:
            self._tokens = places_of(modules, self.phases.tokens)

    def training_step(self, batches: list[dict[str, Any]], batch_idx: int) -> dict[str, Tensor]:
        """Loss of one micro-batch; "loss" = "loss/instance" + prior weight x "loss/prior".

        A batch for each shape of latents; together they hold B samples.
        """
        with self.part("text encoder"):
            text = self.encode([prompt for batch in batches for prompt in batch["prompts"]])
        texts = text.split([len(batch["prompts"]) for batch in batches])
        each = [self.losses(batch, text) for batch, text in zip(batches, texts, strict=True)]
        per_sample = torch.cat(each)  # [B]
        is_prior = torch.cat([batch["is_prior"] for batch in batches])
        return {
            "loss": combine(per_sample, is_prior, self.prior_weight(batches[0]["step"])),
            "loss/instance": mean_of(per_sample.detach(), ~is_prior),
            "loss/prior": mean_of(per_sample.detach(), is_prior),  # NaN without class samples
        }

    def losses(self, batch: dict[str, Any], text: TextEmbedding) -> Tensor:
        """Weighted loss of each sample of one shape, [B], in one forward pass."""
        t = batch["timesteps"]
        noisy = self.objective.noisy(batch)  # [B, C, h, w]
        with self.part("UNet"):
            prediction = predict(self.trained["unet"], noisy, t, text, batch["sizes"])
        target = self.target(batch, noisy)  # [B, C, h, w]
        per_sample = self.objective.per_sample(prediction, target, t, batch["mask"])
        per_sample = batch["weight"] * per_sample
        self.guard.note(batch, per_sample)
        return per_sample

    def target(self, batch: dict[str, Any], noisy: Tensor) -> Tensor:
        """What is to be predicted, [B, C, h, w]; of class samples what the teacher predicts."""
        t, places = batch["timesteps"], batch["prior_places"]
        target = self.objective.target(batch)
        if self.teacher is None or not len(places):
            return target
        sizes, prompts = batch["sizes"][places], batch["prior_prompts"]
        with self.part("frozen base"):
            taught = self.teacher(noisy[places], t[places], prompts, sizes)
        return target.index_copy(0, places, taught.to(target.dtype))

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embeddings of the prompts, [B, L, D]; distinct ones are encoded once, gradients flow."""
        training = self._groups.keys() if self._training_groups is None else self._training_groups
        if not {TEXT_ENCODER, EMBEDDING}.isdisjoint(training):
            return self.text.encode(prompts, self.device)
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeddings:  # alone: a value must not depend on its company
                self.text.to(self.device)  # where it has been put aside
                with torch.no_grad():
                    self._embeddings[prompt] = self.text.encode([prompt], self.device)
        return TextEmbedding.cat([self._embeddings[prompt] for prompt in prompts])

    def on_before_batch_transfer(
        self, batches: list[dict[str, Any]], dataloader_idx: int
    ) -> list[dict[str, Any]]:
        """Draw on the CPU, before the batches move: the same numbers whatever the device."""
        return [self._drawn(batch) for batch in batches]

    def _drawn(self, batch: dict[str, Any]) -> dict[str, Any]:
        tensors = self.objective.draw(batch, self.seed)
        tensors |= {name: batch[name] for name in ("is_prior", "weight", "mask", "sizes")}
        tensors["prior_places"] = batch["is_prior"].nonzero().flatten()
        if self.device.type == "cuda":
            tensors = {n: None if x is None else x.pin_memory() for n, x in tensors.items()}
        prompts = zip(batch["prompts"], batch["is_prior"].tolist(), strict=True)
        names = ("prompts", "names", "index", "step")
        texts: dict[str, Any] = {name: batch[name] for name in names}
        first = int(batch["index"][0])
        texts["dropout_seed"] = seed_of(self.seed, "dropout", batch["step"], first)
        texts["prior_prompts"] = [prompt for prompt, is_prior in prompts if is_prior]
        return {**tensors, **texts}

    def on_train_batch_start(self, batches: Any, batch_idx: int) -> None:
        """Give and take gradients where a phase begins; dropout depends on the step alone."""
        torch.manual_seed(batches[0]["dropout_seed"])  # dropout knows no generator of its own
        self.begin_step(self.trainer.global_step)

    def begin_step(self, step: int) -> None:
        """Let those parameters require gradients that step 0, 1, ... trains."""
        training = {group for group in self._groups if self.phases.trains(group, step)}
        if training == self._training_groups:
            return
        if self._training_groups is None or self._training_groups == {EMBEDDING}:
            self._begin_all(step, alone=training == {EMBEDDING})
        if step == self.phases.text_encoder_stop:
            stopped = [p for name in (TEXT_ENCODER, EMBEDDING) for p in self._groups.get(name, [])]
            for optimizer in self.trainer.optimizers:
                settle(optimizer, stopped)
        self._training_groups = training
        self._embeddings.clear()
        for group, parameters in self._groups.items():
            for parameter in parameters:
                parameter.requires_grad_(group in training)
                parameter.grad = None

    def _begin_all(self, step: int, alone: bool) -> None:
        """Where the embedding is trained alone, or was until this step.

        The optimizer then starts afresh: its counts and rates, where it has some that all groups
        share, are about one embedding. Rows that are not trained are kept: weight decay and
        moments in 8 bit would move them without any gradient.
        """
        embeddings = self._groups[EMBEDDING] if alone else []
        self._resting = [embedding.detach().clone() for embedding in embeddings]
        if 0 < step == self.phases.pivotal:
            for optimizer in self.trainer.optimizers:
                start_afresh(optimizer, self._counts)

    def on_fit_start(self) -> None:
        """Trained parts in training mode (checkpointing needs it), frozen ones on the device."""
        self.trained.train()
        self._embeddings.clear()
        self.text.to(self.device)
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Rates of the first step; the clock of the first micro-batch, as callbacks are through."""
        for config in self.trainer.lr_scheduler_configs:
            assert isinstance(config.scheduler, LambdaLR), "configure_optimizers made it"
            set_rates(config.scheduler)
        self.let_optimizer("train")
        for optimizer in self.trainer.optimizers:
            page_out(optimizer)
        self.batch_began = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The clock of the next micro-batch; Lightning calls this after the callbacks."""
        self.batch_began = time.perf_counter()

    def let_optimizer(self, mode: str) -> None:
        """Tell a schedule-free optimizer which weights are wanted: "train" or "eval" ones.

        In training they are the former; whoever looks at the result wants the latter.
        """
        for optimizer in self.trainer.optimizers:
            if callable(change := getattr(optimizer, mode, None)):
                change()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with self.part("backward"):
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step; a skipped one leaves no trace in the optimizer.

        While the identifiers' rows are trained alone, the others stay what they were.
        """
        before = [counts_of(optimizer) for optimizer in self.trainer.optimizers]
        with self.part("optimizer"):  # forward and backward pass and clipping are inside
            super().optimizer_step(*args, **kwargs)
        if self.guard.skipped:
            for optimizer, counts in zip(self.trainer.optimizers, before, strict=True):
                restore_counts(optimizer, counts)
        if self._resting:
            self._restore_resting_rows()
        self.weights_are_whole = True

    def _restore_resting_rows(self) -> None:
        rested = zip(self._groups[EMBEDDING], self._resting, self._tokens, strict=True)
        for embedding, before, tokens in rested:
            for optimizer in self.trainer.optimizers:
                average = optimizer.state[embedding].get("z")  # a schedule-free one's
                for tensor in (embedding.data, average):
                    if tensor is not None:
                        restore_rows(tensor, before, tokens)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule; fused unless a gradient scaler has to see the gradients first."""
        self._scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        fused = False if self._scaled else None
        trained = dict(self.trained.items())
        optimizer = build_optimizer(trained, self.optimizer_settings, self.phases, fused)
        if self._scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise UserError(
                "training.optimizer_arguments: a fused optimizer unscales inside its step, where "
                "clipping cannot see the gradients; leave fused out with training.precision="
                "16-mixed, or take bf16-mixed"
            )
        self._counts = counts_of(optimizer)
        early = self.optimizer_settings.fused_backward
        self._alone, self._fused = one_by_one(
            optimizer, self.seed, early, lambda: self.trainer.global_step
        )
        schedule = build_schedule(optimizer, self.optimizer_settings, self.phases)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_backward(self, loss: Tensor) -> None:
        """From here on weights may change, where they are stepped within the backward pass."""
        if self._fused:
            self._fused.begin(loss)
            self.weights_are_whole = False

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all trained parameters, computed once and kept.

        Without gradients the optimizer changes nothing: so a step that is not finite is skipped.
        """
        with self.part("clipping"):
            self._clip(optimizer, gradient_clip_val)
        self.weights_are_whole = False
        if self._alone:  # the optimizer's own step, which follows, finds no gradient left
            self._alone.step_all(self.trainer.global_step)

    def _clip(self, optimizer: torch.optim.Optimizer, most: float | None) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = self._fused.norm() if self._fused else norm_of(gradients)
        if self._training_groups == {EMBEDDING} and gradients:
            whole = norm  # class samples show in the rows that are not trained
            for gradient, tokens in zip(gradients, self._tokens, strict=True):
                keep_rows_only(gradient, tokens)
            norm = torch.where(whole.isfinite(), norm_of(gradients), whole)
        self.gradient_norm = norm
        if not self.guard.step_is_good(self.gradient_norm, self._scaled, self._any_process):
            for parameter in parameters:
                parameter.grad = None
            self.trainer.should_stop |= self.guard.hopeless is not None
        elif most:
            norm = norm.to(gradients[0].dtype)
            torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)

    def _any_process(self, skipped: bool) -> bool:
        """Whether any process says so. Norms are equal everywhere; losses, which a scaler has us
        look at, are each process's own."""
        if not self._scaled or self.trainer.world_size == 1:
            return skipped
        return self.trainer.strategy.reduce_boolean_decision(skipped, all=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The steps in a row that were not finite: a resumed run counts on from them."""
        checkpoint[BAD_STEPS] = list(self.guard.bad_steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.bad_steps = list(checkpoint.get(BAD_STEPS, []))
