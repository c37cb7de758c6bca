"""The whole objective against one formula written out in float64, for every combination."""

import math
from itertools import product
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from ldm.errors import UserError
from ldm.objective import (
    HuberSchedule,
    Loss,
    NoiseSchedule,
    Objective,
    ObjectiveSettings,
    Weighting,
    combine,
)

LOSSES: list[tuple[Any, Any]] = [
    ("l2", "constant"),
    *product(["huber", "smooth_l1"], get_args(HuberSchedule)),
]
BASES = [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
BATCH, T = 4, torch.tensor([0, 321, 998, 999])
NAMES: dict[str, Any] = {"huber_c": 0.3, "min_snr_gamma": 4.0, "p2_gamma": 0.8, "p2_k": 1.2}


def build(kind: str, zero: bool = False, **settings: Any) -> Objective:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    return Objective(schedule, ObjectiveSettings(zero_terminal_snr=zero, **settings))


def by_hand(objective: Objective, drawn: dict[str, Tensor], n: int, scale: float) -> float:
    """Loss of sample n for a network that predicts scale x its input + 0.1, in plain float64."""
    s = objective.settings
    step = int(drawn["timesteps"][n])
    a = float(objective.schedule.alphas_cumprod[step])
    x, e, extra = (drawn[k][n].double().numpy() for k in ("latents", "noise", "input_noise"))
    epsilon = objective.schedule.prediction_type == "epsilon"
    target = e if epsilon else math.sqrt(a) * e - math.sqrt(1 - a) * x
    d = scale * (math.sqrt(a) * x + math.sqrt(1 - a) * extra) + 0.1 - target
    sigma = math.sqrt((1 - a) / a) if a else math.inf
    c = {
        "constant": s.huber_c,
        "exponential": s.huber_c ** (step / 1000),
        "snr": (1 - s.huber_c) / (1 + sigma) ** 2 + s.huber_c,
    }[s.huber_schedule]
    smooth = 2 * ((d**2 + c**2) ** 0.5 - c)
    each = {"l2": d**2, "huber": c * smooth, "smooth_l1": smooth}[s.loss]
    m = 1.0
    if s.mask_outside is not None and "mask" in drawn:
        mask = drawn["mask"][n].double().numpy()
        m = mask + s.mask_outside * (1 - mask) + 0 * each
    mean = (m * each).sum() / (m + 0 * each).sum()
    # On the v loss each weight is what it is on epsilon x SNR / (SNR + 1), and SNR / (SNR + 1) = a.
    b, gamma = 1 - a, s.min_snr_gamma
    on_epsilon, on_v = {
        "uniform": (1.0, 1.0),
        "min_snr": (min(1, gamma * b / a) if a else 1, min(a, gamma * b)),
        "soft_min_snr": (gamma * b / (a + gamma * b), a * gamma * b / (a + gamma * b)),
        "debiased": (math.sqrt(b / a) if a else math.inf, math.sqrt(a * b)),
        "p2": ((b / (s.p2_k * b + a)) ** s.p2_gamma, a * (b / (s.p2_k * b + a)) ** s.p2_gamma),
    }[s.weighting]
    return float(mean) * (on_epsilon if epsilon else on_v)


def drawing(side: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(0)
    latents, noise, input_noise = torch.randn(3, BATCH, 3, side, side, dtype=torch.float64)
    mask = torch.rand(BATCH, 1, side, side, dtype=torch.float64)
    mask[0], mask[1, :, :3] = 0, 1
    drawn = {"latents": latents, "noise": noise, "input_noise": input_noise}
    return {**drawn, "timesteps": T, "mask": mask}


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("weighting", get_args(Weighting))
def test_every_combination_is_the_formula(base: tuple[str, bool], weighting: Weighting) -> None:
    """Losses x their schedules x weightings x predictions x masks: value and gradient."""
    for (loss, shape), outside in product(LOSSES, (None, 0.0, 0.25, 1.0)):
        options = {"loss": loss, "huber_schedule": shape, "weighting": weighting, **NAMES}
        objective = build(*base, **options, mask_outside=outside)
        drawn = drawing()
        if outside == 0:
            drawn["mask"][0] += 0.5
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        prediction = scale * objective.noisy(drawn) + 0.1
        loss_of = objective.per_sample(
            prediction, objective.target(drawn), drawn["timesteps"], drawn["mask"]
        )
        assert loss_of.dtype == torch.float64 and loss_of.shape == (BATCH,)
        for n in range(BATCH):
            expected = by_hand(objective, drawn, n, 0.7)
            assert loss_of[n].item() == pytest.approx(expected, rel=1e-9, abs=1e-15), options
            up, down = (by_hand(objective, drawn, n, 0.7 + step) for step in (1e-5, -1e-5))
            (gradient,) = torch.autograd.grad(loss_of[n], scale, retain_graph=True)
            slope = (up - down) / 2e-5
            assert gradient.item() == pytest.approx(slope, rel=1e-6, abs=1e-9), options


def test_float32_gives_the_same_in_float32() -> None:
    for base in BASES:
        objective = build(*base, loss="huber", weighting="p2", mask_outside=0.2, **NAMES)
        exact = drawing()
        drawn = {k: v.float() if v.is_floating_point() else v for k, v in exact.items()}
        prediction, target = 0.7 * objective.noisy(drawn) + 0.1, objective.target(drawn)
        assert prediction.dtype == target.dtype == torch.float32
        loss = objective.per_sample(prediction, target, T, drawn["mask"])
        assert loss.dtype == torch.float32
        expected = torch.tensor([by_hand(objective, exact, n, 0.7) for n in range(BATCH)])
        torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-9)
        halves = objective.per_sample(prediction.bfloat16(), target, T, drawn["mask"].half())
        assert halves.dtype == torch.float32


@pytest.mark.parametrize("given, outside", [(False, 0.3), (True, None), (True, 1.0)])
def test_without_masks_it_is_the_plain_mean(given: bool, outside: float | None) -> None:
    drawn = drawing()
    objective, plain = build("epsilon", mask_outside=outside), build("epsilon")
    arguments = objective.noisy(drawn), objective.target(drawn), T
    loss = objective.per_sample(*arguments, drawn["mask"] if given else None)
    torch.testing.assert_close(loss, plain.per_sample(*arguments), rtol=1e-14, atol=0)


def test_a_step_is_the_mean_of_its_parts() -> None:
    """B instance and B class samples at once or in two halves, every option on, in float64."""
    options: dict[str, Any] = {"loss": "huber", "weighting": "min_snr", "mask_outside": 0.1}
    options |= {"noise_offset": 0.1, "pyramid_noise": 0.5, "input_perturbation": 0.1}
    objective = build("v_prediction", True, **options, timesteps="cubic", timestep_min=100)
    mean, mask = torch.randn(8, 4, 8, 8, dtype=torch.float64), torch.rand(8, 1, 8, 8)
    is_prior, weight = torch.arange(8) >= 4, torch.rand(8)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(rows: list[int]) -> Tensor:
        batch = {"mean": mean[rows], "std": mean[rows].abs(), "index": torch.tensor(rows)}
        drawn = objective.draw({**batch, "step": 2}, seed=3)
        prediction, target = scale * objective.noisy(drawn), objective.target(drawn)
        each = objective.per_sample(prediction, target, drawn["timesteps"], mask[rows])
        return combine(weight[rows] * each, is_prior[rows], 0.6)

    whole, parts = loss([*range(8)]), (loss([0, 1, 4, 5]) + loss([2, 3, 6, 7])) / 2
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, scale)[0] for value in (whole, parts)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


def test_the_timesteps_are_those_of_the_settings() -> None:
    batch = {"mean": torch.zeros(300, 1, 2, 2), "std": torch.ones(300, 1, 2, 2), "step": 0}
    batch["index"] = torch.arange(300)
    t = {}
    for name in ("uniform", "logit_normal", "cubic"):
        among: dict[str, Any] = {"timestep_min": 40, "timestep_max": 60}
        objective = build("epsilon", timesteps=name, logit_mean=-2.0, logit_std=0.1, **among)
        assert objective.timesteps == range(40, 60)
        t[name] = objective.draw(batch, 0)["timesteps"].double()
        assert t[name].min() >= 40 and t[name].max() < 60
    assert t["uniform"].mean().item() == pytest.approx(49.5, abs=1.5)
    assert t["cubic"].mean().item() == pytest.approx(54.5, abs=1.5)
    assert set(t["logit_normal"].tolist()) <= {41, 42, 43}  # 40 + 20 sigmoid(-2) = 42.4


def test_zero_terminal_snr_reaches_pure_noise() -> None:
    objective, drawn = build("v_prediction", True), drawing()
    assert objective.noisy(drawn)[3].equal(drawn["input_noise"][3])
    assert objective.target(drawn)[3].equal(-drawn["latents"][3])
    again = Objective(objective.schedule, objective.settings)
    assert again.schedule.alphas_cumprod.equal(objective.schedule.alphas_cumprod)


def test_what_the_base_model_cannot_do() -> None:
    with pytest.raises(UserError, match=r"objective\.zero_terminal_snr"):
        build("epsilon", True)
    with pytest.raises(UserError, match=r"objective\.timestep_max=1001"):
        build("epsilon", timestep_max=1001)
    with pytest.raises(UserError, match=r"objective\.timestep_min=1000"):
        build("epsilon", timestep_min=1000)
    ends = NoiseSchedule.from_scheduler(DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(UserError, match=r"objective\.weighting=debiased.*timestep_max=999"):
        Objective(ends, ObjectiveSettings(weighting="debiased"))
    Objective(ends, ObjectiveSettings(weighting="debiased", timestep_max=999))
    Objective(ends, ObjectiveSettings(weighting="min_snr"))


def test_defaults_are_plain_ddpm() -> None:
    objective, drawn = build("epsilon"), drawing()
    prediction, target = objective.noisy(drawn), objective.target(drawn)
    expected = (prediction - target).square().mean((1, 2, 3))
    torch.testing.assert_close(objective.per_sample(prediction, target, T), expected)
    assert target is drawn["noise"]


def test_it_leaves_no_trace_in_a_state_dict_and_nothing_to_train() -> None:
    objective = build("v_prediction", True, loss="huber")
    assert not objective.state_dict() and not list(objective.parameters())
    assert get_args(Loss) == ("l2", "huber", "smooth_l1")


def test_it_moves_with_its_module_and_never_waits() -> None:
    """On the meta device nothing has a value: whoever asks for one raises."""
    objective = build("v_prediction", loss="huber", weighting="soft_min_snr", mask_outside=0.5)
    objective.to("meta")
    drawn = {name: tensor.to("meta") for name, tensor in drawing().items()}
    prediction, target = objective.noisy(drawn), objective.target(drawn)
    each = objective.per_sample(prediction, target, drawn["timesteps"], drawn["mask"])
    is_prior = torch.zeros(BATCH, dtype=torch.bool, device="meta")
    assert combine(each, is_prior, 0.5).device.type == "meta"
