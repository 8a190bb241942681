"""Schedulers of diffusers whose process is no table of betas: what they say becomes the right schedule, time and prediction.

What is expected is the algebra of diffusers' own pipelines around the bare network (EDMEulerScheduler.precondition_*,
KarrasVePipeline and ScoreSdeVePipeline, the flow schedulers' step), and the exact answers for Gaussian data.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_strange_files import CHECKPOINTS, said
from test_strange_files import folder as folder

from diffjax import denoisers, schedules, zoo
from diffjax.zoo import parametrisations, public


class Known:
    """A network of a formula."""

    def __init__(self, formula):
        self.apply = lambda params, x, i, *told: formula(x, i)


def net(x, i):
    """One that shows what it was given."""
    return x**2 - 0.3 * x + np.float32(0.01) * i


def prior_of(folder, scheduler):
    """The prior, with ``net`` in place of its network, and a picture."""
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    prior = zoo.load(folder)
    known = replace(prior.net, net=Known(net)) if hasattr(prior.net, "net") else Known(net)
    return replace(prior, net=known), np.random.default_rng(0).standard_normal(prior.shape).astype(np.float32)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
UNIPC = {"_class_name": "UniPCMultistepScheduler", "num_train_timesteps": 1000, "use_flow_sigmas": True, "flow_shift": 2.0,
         "prediction_type": "flow_prediction", "beta_start": 1e-4}  # fmt: skip


@pytest.mark.parametrize("scheduler", [FLOW, UNIPC])
def test_flow_matching(scheduler, folder):
    """x_t = (1 - t) x_0 + t eps, the network is told 1000 t and predicts eps - x_0."""
    prior, x = prior_of(folder, scheduler)
    assert isinstance(prior.schedule, schedules.RectifiedFlow) and prior.loss == "velocity"
    p, v = prior.denoiser(clip=False)(x, 0.25), net(x, 250)
    np.testing.assert_allclose(p.x0, x - 0.25 * v, atol=1e-5)
    np.testing.assert_allclose(p.eps, x + 0.75 * v, atol=1e-5)


@pytest.mark.parametrize("kind, sign", [("epsilon", 1), ("v_prediction", -1)])
def test_edm(kind, sign, folder):
    prior, x = prior_of(folder, {"_class_name": "EDMEulerScheduler", "sigma_max": 40.0, "sigma_data": 0.4,
                                      "prediction_type": kind, "sigma_schedule": "karras", "rho": 7.0})  # fmt: skip
    assert prior.schedule.T == 40 and prior.card["assumed"] == ""
    for sigma in (0.05, 1.0, 30.0):
        p = prior.denoiser(clip=False)(sigma * x, sigma)
        norm = np.hypot(sigma, 0.4)
        out = net(sigma * x / norm, 0.25 * np.log(sigma))
        np.testing.assert_allclose(p.x0, 0.16 / norm**2 * sigma * x + sign * sigma * 0.4 / norm * out, atol=2e-4)
        assert float(p.sigma) == np.float32(sigma) and float(p.alpha) == 1


@pytest.mark.parametrize("kind, factor, most", [("ScoreSdeVeScheduler", 2, 2696), ("KarrasVeScheduler", 1, 100)])
def test_variance_exploding(kind, factor, most, folder):
    """The pipelines give the network y = (x + 1) / 2 and sigma / 2; y + (sigma / 2)^2 times its answer is the clean y."""
    prior, x = prior_of(folder, {"_class_name": kind, "sigma_min": 0.02})
    schedule = prior.schedule
    np.testing.assert_allclose([schedule.sigma(1.0), schedule.sigma(1e-9)], [most, factor * 0.02], rtol=1e-6)
    t = 0.4
    sigma = float(schedule.sigma(t))
    clean = (x + 1) / 2 + (sigma / 2) ** 2 * net((x + 1) / 2, sigma / 2)
    np.testing.assert_allclose(prior.denoiser(clip=False)(x, t).x0, 2 * clean - 1, rtol=1e-4, atol=1e-4 * sigma**2)


def test_gaussian_data_has_its_exact_answer():
    """Of N(m, v): the mean of x0 given x at sigma is (sigma^2 m + v x) / (sigma^2 + v). The best network in Karras et al.'s
    preconditioning predicts 0 where m = 0 and v = sigma_data^2; the score of y = (x + 1) / 2 is (m_y - y) / (v_y + s^2)."""
    x = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 2, 2)
    edm = parametrisations.Preconditioned(Known(lambda x, i: 0 * x), 0.3)
    p = denoisers.from_x0(edm.apply, {}, schedules.EDM(80.0))(x, 0.7)
    np.testing.assert_allclose(p.x0, 0.09 * x / (0.49 + 0.09), rtol=1e-5)
    m, v = 0.2, 0.16
    unit = parametrisations.UnitRange(Known(lambda y, s: ((m + 1) / 2 - y) / (v / 4 + s**2)))
    ve = schedules.VE(0.02, 100.0)
    p = denoisers.from_score(unit.apply, {}, ve, time=denoisers.Scaled(0.5))(x, 0.5)
    variance = float(ve.sigma(0.5)) ** 2
    np.testing.assert_allclose(p.x0, (variance * m + v * x) / (variance + v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheduler, wanted", [
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "prediction_type=sample"),
    ({"_class_name": "EDMEulerScheduler", "sigma_data": -1}, "sigma_data=-1"),
    ({"_class_name": "EDMDPMSolverMultistepScheduler", "beta_start": 0.1}, "beta_start=0.1 is not known"),
    ({"_class_name": "KarrasVeScheduler", "sigma_min": 5, "sigma_max": 2}, "sigma_min=5 is not below"),
    (UNIPC | {"prediction_type": "epsilon"}, "mixes two processes"),
    (UNIPC | {"use_flow_sigmas": False}, "flow_prediction"),
    ({"_class_name": "ScoreSdeVpScheduler"}, "in continuous time"),
])  # fmt: skip
def test_what_is_mixed_or_unknown_is_refused(scheduler, wanted, folder):
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert wanted in said(folder, zoo.load)


def test_settings_say_it_too(tmp_path):
    """Of a file without a description; a loss that does not belong to the schedule is refused."""
    shutil.copy(CHECKPOINTS / "tiny_unet2d_2022.bin", tmp_path / "a.bin")
    with pytest.warns(zoo.Assumed):
        prior = zoo.load(tmp_path / "a.bin", {"groups": 2, "size": 16, "schedule": "edm", "loss": "edm", "sigma_max": 9})
    assert prior.schedule.T == 9 and prior.loss == "x0"
    for loss, schedule in ((None, "edm"), ("edm", "linear"), ("v", "ve"), ("velocity", "cosine")):
        with pytest.raises(ValueError, match="does not fit schedule"):
            public.loss_of(3, 3, loss, schedule)
