"""The score-SDE code's probability-flow ODE and likelihoods: scipy's RK45 on the recorded batch, which is one state there.

Its steps are chosen by the error of the whole batch, so the batch is handed over as one array. The solver takes the same
steps, but rounding can tip one over: evaluations are within 12."""

import jax
import numpy as np
import pytest
from golden_files import check, load

import diffjax as dj
from diffjax.base import Prediction, pytree
from diffjax.likelihood import flow

SCHEDULES = {"ve": dj.schedules.VE, "vp": dj.schedules.VP, "subvp": dj.schedules.SubVP}


@pytree
class Batch:
    """The exact denoiser of a mixture for a batch as one array."""

    prior: dj.priors.Mixture
    schedule: object

    def __call__(self, x, t):
        p = jax.vmap(self.prior.denoiser(self.schedule), (0, None))(x, t)
        return Prediction(p.x0, p.eps, None, x, p.alpha[0], p.sigma[0])


def problem(run, meta):
    parameters = {name: meta[name] for name in ("sigma_min", "sigma_max", "beta_min", "beta_max") if name in meta}
    prior = dj.priors.mixture(np.exp(run["gmm_logw"]), run["gmm_mu"], run["gmm_var"])
    return Batch(prior, SCHEDULES[meta["sde"]](**parameters))


def published(meta, **settings):
    return dj.adaptive.Adaptive(meta["rtol"], meta["atol"], eps=meta["eps"], by="t", **settings)


def denoised(denoise, x, meta):
    """The official end of a run that is denoised: the mean of one of N reverse-diffusion steps, from eps."""
    p, beta = denoise(x, meta["eps"]), meta.get("beta_min", 0.0) / meta["N"]
    g2 = beta if meta["sde"] == "vp" else meta["sigma_min"] ** 2
    return x + (1 - np.sqrt(1 - beta)) * x - g2 * np.asarray(p.eps / p.sigma)


@pytest.mark.golden("score_sde", "sde_ode")
def test_end_states_and_evaluations(golden_file):
    """In float32, to which the official right-hand side is rounded."""
    run, meta = load(golden_file)
    denoise = problem(run, meta)
    found = dj.flow.decode(denoise, run["z"], published(meta))
    x = denoised(denoise, found.x, meta) if meta["denoise"] else found.x
    check(f"{golden_file.stem} official", x, run["out"], 2e-4, absolute=True)
    check(f"{golden_file.stem} tight", x, run["ref_tight"], 2e-4, absolute=True)
    check(f"{golden_file.stem} evaluations", found.calls, run["nfe"], 12, absolute=True)


@pytest.mark.golden("score_sde", "sde_lik")
def test_bits_with_the_recorded_probes(golden_file):
    """One probe for each image, the end N(0, 1) (VE: N(0, sigma_max^2)). The state's divergence is summed over the batch here:
    the mean over the images is compared. Officially each is a number of the state, which moves the steps a little."""
    run, meta = load(golden_file)
    probes = run["hutchinson"].astype(float)
    probes = 2 * probes - 1 if meta["hutchinson_type"] == "Rademacher" else probes
    with jax.enable_x64(True):
        x = run["data"].astype(float)
        walk = published(meta, compare=False)
        found = flow.log_prob(problem(run, meta), walk, x, probes=probes[None], end="normal")
        bits = flow.bits_per_dimension(found.nats, x.size, (0, 2.0 ** (8 - meta["offset"])))
    check(f"{golden_file.stem} bits", bits, run["bpd"].mean(), 2e-4, absolute=True)
    check(f"{golden_file.stem} latent", found.latent, run["z"], 2e-4)
    check(f"{golden_file.stem} evaluations", found.calls, run["nfe"], 12, absolute=True)
