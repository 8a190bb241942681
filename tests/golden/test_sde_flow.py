"""The score-SDE code's probability-flow ODE and likelihoods: scipy's RK45 on the recorded batch, which is one state there.

Its steps are chosen by the error of the whole batch, so the batch is handed over as one array. Official right-hand sides round
to float32, which moves the step control: evaluations are within 12."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load

import diffjax as dj
from diffjax.base import Prediction, pytree
from diffjax.likelihood import flow

SCHEDULES = {"ve": dj.schedules.VE, "vp": dj.schedules.VP, "subvp": dj.schedules.SubVP}


@pytree
class Batch:
    """The exact denoiser of a mixture for a batch as one array, or for one image."""

    prior: dj.priors.Mixture
    schedule: object

    def __call__(self, x, t):
        one = self.prior.denoiser(self.schedule)
        if x.shape == self.prior.shape:
            return one(x, t)
        p = jax.vmap(one, (0, None))(x, t)
        return Prediction(p.x0, p.eps, None, x, p.alpha[0], p.sigma[0])


def problem(run, meta):
    parameters = {name: meta[name] for name in ("sigma_min", "sigma_max", "beta_min", "beta_max") if name in meta}
    prior = dj.priors.mixture(np.exp(run["gmm_logw"]), run["gmm_mu"], run["gmm_var"])
    return Batch(prior, SCHEDULES[meta["sde"]](**parameters))


def published(meta):
    return dj.flow.Adaptive(meta["rtol"], meta["atol"], by="t")


def last_step(denoise, x, meta):
    """The official end of a run that is denoised: the mean of one reverse-diffusion step from eps, of N steps."""
    p, N = denoise(x, meta["eps"]), meta["N"]
    beta = meta.get("beta_min", 0.0) / N
    g2 = beta if meta["sde"] == "vp" else meta["sigma_min"] ** 2
    return x - (np.sqrt(1 - beta) - 1) * x - g2 * np.asarray(p.eps / p.sigma)


@pytest.mark.golden("score_sde", "sde_ode")
def test_end_states_and_evaluations(golden_file):
    run, meta = load(golden_file)
    with jax.enable_x64(True):
        denoise = problem(run, meta)
        found = dj.flow.decode(denoise, run["z"].astype(float), published(meta), eps=meta["eps"])
        x = np.asarray(found.x)
        x = last_step(denoise, x, meta) if meta["denoise"] else x
        # the house's variable: one tight solve, no schedule's derivative
        tight = dj.flow.decode(denoise, run["z"].astype(float), dj.flow.Adaptive(1e-9, 1e-9), eps=meta["eps"])
        end = np.asarray(tight.x)
        end = last_step(denoise, end, meta) if meta["denoise"] else end
    tolerance = 2e-4 * max(meta["rtol"] / 1e-5, 1)
    check(f"{golden_file.stem} official", x, run["out"], tolerance, absolute=True)
    check(f"{golden_file.stem} tight", x, run["ref_tight"], tolerance, absolute=True)
    check(f"{golden_file.stem} in nu", end, run["ref_tight"], 1e-6, absolute=True)
    calls = int(found.calls) - (0 if True else 0)
    print(f"{golden_file.stem}: {calls} calls, official {run['nfe']}")
    assert abs(calls - int(run["nfe"])) <= 12


@pytest.mark.golden("score_sde", "sde_lik")
def test_bits_with_the_recorded_probes(golden_file):
    run, meta = load(golden_file)
    probes = run["hutchinson"].astype(float)
    probes = 2 * probes - 1 if meta["hutchinson_type"] == "Rademacher" else probes
    print(run["bpd"], run["exact_bpd_with_offset"])
