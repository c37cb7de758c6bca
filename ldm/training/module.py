"""The training module: one optimizer step on instance and class samples together.

It holds what is trained and nothing else, so checkpoints hold nothing else: the VAE is not here
(the pictures' latents are cached) and a frozen text encoder is kept beside the module, not inside.
"""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.models.text import encode_prompts
from ldm.objective import NoiseSchedule, combine, mean_of, per_sample_loss
from ldm.randomness import generator
from ldm.training.optim import OptimizerSettings, build_optimizer, build_schedule


def draw(batch: dict[str, Any], seed: int, timesteps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean latents and noise [B, C, h, w], timesteps [B] of a micro-batch, on the CPU.

    Each sample's draws depend on (seed, purpose, step, place in the global batch) alone, so neither
    resuming nor cutting the step into parts changes them. The latents are a fresh sample of the
    VAE's posterior, mean + std x noise (arXiv 1312.6114, equation 10). timesteps: their number T.
    """
    step, places, shape = batch["step"], batch["index"].tolist(), batch["mean"].shape[1:]

    def normal(purpose: str) -> Tensor:
        return torch.stack(
            [torch.randn(shape, generator=generator(seed, purpose, step, n)) for n in places]
        )

    latents = batch["mean"] + batch["std"] * normal("posterior")
    t = [
        torch.randint(timesteps, (), generator=generator(seed, "timestep", step, n)) for n in places
    ]
    return latents, normal("noise"), torch.stack(t)


class DreamBoothModule(pl.LightningModule):
    """DreamBooth fine-tuning (arXiv 2208.12242) of a UNet and perhaps its text encoder.

    modules: what is trained, {"unet": ...} or {"unet": ..., "text_encoder": ...}, in float32.
    tokenizer, text_encoder: turn prompts into embeddings; a text encoder that is not among
    `modules` is frozen, and each prompt is encoded once. prior_weight: of the class samples' mean
    loss. min_snr_gamma: None or > 0, see NoiseSchedule.weight. seed: of every draw in training.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        tokenizer: Any,
        text_encoder: nn.Module,
        schedule: NoiseSchedule,
        optimizer: OptimizerSettings,
        *,
        prior_weight: float = 1.0,
        min_snr_gamma: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(modules)
        self.tokenizer = tokenizer
        self._text_encoder = (text_encoder,)  # in a tuple, a frozen one is not registered as a part
        self._embeddings: dict[str, Tensor] = {}  # prompt -> [L, D] of a frozen text encoder
        self.schedule = schedule
        self.optimizer_settings = optimizer
        self.prior_weight = prior_weight
        self.min_snr_gamma = min_snr_gamma
        self.seed = seed
        self.gradient_norm: Tensor | None = None  # of the last optimizer step, before clipping
        self.batch_began = 0.0  # on time.perf_counter, when all callbacks were through

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Loss of one micro-batch; "loss" = "loss/instance" + prior_weight x "loss/prior"."""
        latents, noise, t = batch["latents"], batch["noise"], batch["timesteps"]
        text = self.encode(batch["prompts"])  # [B, L, D]
        noisy = self.schedule.add_noise(latents, noise, t)  # [B, C, h, w]
        prediction = self.trained["unet"](noisy, t, encoder_hidden_states=text).sample
        target = self.schedule.target(latents, noise, t)
        weight = self.schedule.weight(t, self.min_snr_gamma)  # [B]
        per_sample = weight * per_sample_loss(prediction, target)  # [B]
        is_prior = batch["is_prior"]
        return {
            "loss": combine(per_sample, is_prior, self.prior_weight),
            "loss/instance": mean_of(per_sample.detach(), ~is_prior),
            "loss/prior": mean_of(per_sample.detach(), is_prior),  # NaN without class samples
        }

    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings of the prompts, [B, L, D]; distinct ones are encoded once, gradients flow."""
        (text_encoder,) = self._text_encoder
        if "text_encoder" in self.trained:
            return encode_prompts(self.tokenizer, text_encoder, prompts, self.device)
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeddings:  # alone: a value must not depend on its company
                with torch.no_grad():
                    embedding = encode_prompts(self.tokenizer, text_encoder, [prompt], self.device)
                self._embeddings[prompt] = embedding[0]
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def on_before_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Draw on the CPU, before the batch moves: the same numbers whatever the device."""
        latents, noise, timesteps = draw(batch, self.seed, len(self.schedule))
        tensors = {
            "latents": latents,
            "noise": noise,
            "timesteps": timesteps,
            "is_prior": batch["is_prior"],
        }
        if self.device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return {**tensors, "prompts": batch["prompts"], "step": batch["step"]}

    def on_fit_start(self) -> None:
        """Trained parts in training mode (checkpointing needs it), a frozen one on the device."""
        self.trained.train()
        self._embeddings.clear()
        if "text_encoder" not in self.trained:
            self._text_encoder[0].to(self.device)

    def on_train_start(self) -> None:
        """The clock of the first micro-batch; Lightning calls this after the callbacks."""
        self.batch_began = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The clock of the next micro-batch; Lightning calls this after the callbacks."""
        self.batch_began = time.perf_counter()

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule; fused unless a gradient scaler has to see the gradients first."""
        fused = False if getattr(self.trainer.precision_plugin, "scaler", None) else None
        trained = dict(self.trained.items())
        optimizer = build_optimizer(trained, self.optimizer_settings, fused)
        schedule = build_schedule(optimizer, self.optimizer_settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all trained parameters; the one norm is computed once and kept."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)
