"""What the recorded score-SDE runs have in common: their closed-form score, schedules, kernels, and the order of their draws.

A recorded batch is one array here, (images, C, H, W), as the official corrector couples its images.
"""

import jax
import jax.numpy as jnp
import numpy as np
import quirks_sde as quirks

import diffjax as dj
from diffjax.base import Prediction

K = dj.kernels
M = [  # the official rotation of colours
    [5.7735014e-01, -8.1649649e-01, 4.7008697e-08],
    [5.7735026e-01, 4.0824834e-01, 7.0710671e-01],
    [5.7735026e-01, 4.0824822e-01, -7.0710683e-01],
]


def formula(meta):
    """The continuous schedule."""
    if meta["sde"] == "ve":
        return dj.schedules.VE(meta["sigma_min"], meta["sigma_max"])
    return {"vp": dj.schedules.VP, "subvp": dj.schedules.SubVP}[meta["sde"]](meta["beta_min"], meta["beta_max"])


def entries(meta):
    """The table of the official ``discretize``; None for sub-VP, which has none."""
    N = meta["N"]
    if meta["sde"] == "ve":
        sigmas = np.exp(np.linspace(np.log(meta["sigma_min"]), np.log(meta["sigma_max"]), N))
        return dj.schedules.Discrete(np.ones(N + 1), np.append(0.0, sigmas))
    return dj.schedules.discrete(np.linspace(meta["beta_min"] / N, meta["beta_max"] / N, N)) if meta["sde"] == "vp" else None


def times(meta):
    t = np.linspace(1, meta["eps"], meta["N"])
    index = np.trunc(t * (meta["N"] - 1)).astype(int)
    np.testing.assert_array_equal(index, np.arange(meta["N"])[::-1])  # else the official steps would not be those of a walk
    return t


def by_table(meta):
    """Whether the predictor steps through the table. Euler takes the continuous process."""
    return entries(meta) is not None and meta["predictor"] != "euler_maruyama"


def walk(meta):
    """(schedule, timetable) of the kernel. The last row ends at the clean image."""
    if by_table(meta):
        return entries(meta), dj.timetables.from_times(np.arange(meta["N"], -1.0, -1.0))
    return formula(meta), dj.timetables.from_times(np.append(times(meta), 0.0))


def levels(meta):
    """(alpha, sigma) that the network is asked at in each row."""
    t, N = times(meta), meta["N"]
    if not meta.get("continuous", True):
        at = N - np.round((1 - t) * (N - 1)) if meta["sde"] == "ve" else np.trunc(t * (N - 1)) + 1
        return entries(meta).alpha(at), entries(meta).sigma(at)
    return formula(meta).alpha(t), formula(meta).sigma(t)


def parts(run, x, alpha, sigma):
    """(log of each component's weighted density, its score) at one image."""
    v = alpha**2 * run["gmm_var"] + sigma**2
    d = x - alpha * run["gmm_mu"]
    return run["gmm_logw"] - 0.5 * (d**2 / v + jnp.log(v)).sum((1, 2, 3)), -d / v


def mixture_score(run, x, alpha, sigma):
    logs, scores = parts(run, x, alpha, sigma)
    return (jax.nn.softmax(logs)[:, None, None, None] * scores).sum(0)


def class_gradient(run, x, y, alpha, sigma):
    """grad log p(component y | x)"""
    return parts(run, x, alpha, sigma)[1][y] - mixture_score(run, x, alpha, sigma)


def denoiser(run, meta):
    """The score at the official levels, as a denoiser at the kernel's own. Labels guide it where the run has them."""
    schedule, table = walk(meta)
    t, alphas, sigmas = (jnp.asarray(a) for a in (table.t, *levels(meta)))
    gmm = {name: jnp.asarray(run[name]) for name in ("gmm_mu", "gmm_var", "gmm_logw")}
    at = lambda time: jnp.argmin(jnp.abs(t - time))

    def plain(x, time):
        n = at(time)
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        score = jax.vmap(lambda x: mixture_score(gmm, x, alphas[n], sigmas[n]))(x)
        return Prediction((x + sigma**2 * score) / alpha, -sigma * score, None, x, alpha, sigma)

    plain.schedule = schedule
    if "y" not in run:
        return plain
    label = jnp.asarray(run["y"])
    each = jax.vmap(lambda x, y, n: class_gradient(gmm, x, y, alphas[n], sigmas[n]), (0, 0, None))
    return dj.denoisers.classifier(dj.method.as_denoiser(plain), lambda x, time: each(x, label, at(time)))


def predictor(meta, noisy_end):
    """The library's where it can be, with what the recorded run needs."""
    name, ve, N = meta["predictor"], meta["sde"] == "ve", meta["N"]
    eta = 0.0 if meta.get("probability_flow") else 1.0
    if name == "none":
        return quirks.Stay(eta=0.0)
    if name == "euler_maruyama" or not by_table(meta):
        found = quirks.Euler(eta=eta, N=N)
    elif name == "reverse_diffusion":
        found = K.ReverseDiffusion(eta=eta)
    else:
        found = quirks.Ancestral(ve=ve) if noisy_end else K.DDPM(variance="small" if ve else "large")
    return quirks.NoisyEnd(kernel=found) if noisy_end else found


def corrector(meta):
    """None where there is none."""
    name, snr, steps = meta["corrector"], meta["snr"], meta.get("n_steps", 1)
    if name == "none":
        return None
    schedule, table = walk(meta)
    official = entries(meta)
    n = np.arange(meta["N"], 0.0, -1.0)
    share = dj.process.transition(official, n, n - 1)[0] ** 2
    if name == "ald":
        share = share * (formula(meta).sigma(times(meta)) / schedule.sigma(table.t)) ** 2
        return quirks.Annealed(snr, steps, share=share)
    return K.Langevin(snr, steps, over=0) if by_table(meta) else quirks.Langevin(snr, steps, 0, share)


def split(draws, meta, data=False):
    """{"corrector", "predictor", "known"}: the draws of each row, in the order that the official loop makes them in. ``data``:
    the loop draws noise for the data after the corrector and after the predictor."""
    n = 0 if meta["corrector"] == "none" else meta.get("n_steps", 1)
    moves = 0 if meta["predictor"] == "none" else 1
    rows = draws.reshape(meta["N"], n + moves + 2 * data, *draws.shape[1:]).astype(np.float64)
    found = {"corrector": rows[:, :n], "known": rows[:, [n, n + 1 + moves]] if data else None}
    found["predictor"] = rows[:, n + data] if moves else None
    return found
