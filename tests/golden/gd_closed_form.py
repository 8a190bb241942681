"""What the recorded guided-diffusion runs have in common: their closed-form network, names and layout.

The network is the exact denoiser of a mixture of diagonal Gaussians, here for one image with the channels last.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj

FLOAT64, FLOAT32 = 1e-9, 1e-4  # relative to max |x|
SCHEDULES = {"linear": dj.schedules.linear_betas, "cosine": dj.schedules.cosine_betas}
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED": "learned", "LEARNED_RANGE": "learned_range"}


# these programs run once: compile them in a quarter of the time
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def in_dtype(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def channels_last(a):
    """(..., C, H, W) -> (..., H, W, C)"""
    return np.moveaxis(np.asarray(a), -3, -1)


def gradient_of_class(params, x, i, y):
    """grad_x log p(component y | x) at index i, the recorded classifier: score_y minus the mean score. The factor sqrt(A) is
    taken out by hand, because the difference is that small where A is."""
    log_r, _, total = _log_weights(params, x, i)
    r = jax.nn.softmax(log_r)[:, None, None, None]
    root, mu, var = jnp.sqrt(_at(params, i)[1][0]), params["mu"], params["var"]
    return root * (r * (mu[y] / total[y] - mu / total - root * x * (var - var[y]) / (total * total[y]))).sum(0)


def _at(params, i):
    """abar, 1 - abar, abar and 1 - abar one index below, beta: at the original index of what the network is told, which
    may be rescaled. Tables made in float64: 1 - abar in float32 would be off by up to 1e-3."""
    index = jnp.round(i / params["unit"]).astype(int)
    return index, params["tables"][:, index]


def _log_weights(params, x, i):
    _, (A, rest, *_) = _at(params, i)
    total = A * params["var"] + rest
    d = x - jnp.sqrt(A) * params["mu"]
    return params["log_w"] - 0.5 * (d**2 / total + jnp.log(total)).sum((1, 2, 3)), d, total


def _mean_output(mean, params, x, i):
    _, (A, rest, before, rest_before, beta) = _at(params, i)
    log_r, d, total = _log_weights(params, x, i)
    r = jax.nn.softmax(log_r)[:, None, None, None]
    x0 = (r * (params["mu"] + jnp.sqrt(A) * params["var"] / total * d)).sum(0)
    if mean == "START_X":
        return x0
    if mean == "EPSILON":
        return (x - jnp.sqrt(A) * x0) / jnp.sqrt(rest)  # two roundings only: samplers magnify them by 1 / alpha
    # PREVIOUS_X: the mean of q(x_{t-1} | x_t, x0), Ho et al. 2020, eq. 7
    return (beta * jnp.sqrt(before) * x0 + rest_before * jnp.sqrt(1 - beta) * x) / rest


@functools.cache
def _batched(mean):
    return quick_jit(jax.vmap(functools.partial(_mean_output, mean), (None, 0, 0)))


def network(mean, variance, batch=False):
    """apply(params, x, i) that predicts ``mean`` (official name), with twice the channels for learned variances."""
    predict = _batched(mean) if batch else functools.partial(_mean_output, mean)

    def apply(params, x, i):
        out = predict(params, x, i)
        n = _at(params, i)[0].astype(x.dtype).reshape(-1, *(1,) * 3) if batch else _at(params, i)[0].astype(x.dtype)
        mix = {"LEARNED_RANGE": lambda: 0.8 * jnp.sin(3 * x + 0.01 * n), "LEARNED": lambda: -3 + 0.5 * jnp.sin(2 * x)}
        return jnp.concatenate([out, mix[variance]()], -1) if variance in mix else out

    return apply


def rebuild(run, meta, mean, variance, dtype, batch=False):
    """(schedule, denoiser, network's params, network time of t) of a recorded run.

    The schedule is the original one, of which a respaced run visits some times. A network that predicts the previous
    mean predicts it for the run's own steps: there the schedule is the respaced table. ``batch``: the denoiser takes the
    whole batch as one array, with one time per image.
    """
    T, rescaled = meta["T"], meta.get("rescale_timesteps", False)
    betas = SCHEDULES[meta["sched"]](T)
    base = dj.schedules.discrete(betas)
    unit = 1000 / T if rescaled else 1.0
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    params = {
        "mu": channels_last(run["gmm_mu"]),
        "var": channels_last(run["gmm_var"]),
        "log_w": run["gmm_logw"],
        "tables": np.stack([bar, 1 - bar, before, 1 - before, betas]),
        "unit": np.float64(unit),
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    schedule, time = base, lambda t: (t - 1) * unit
    if mean == "PREVIOUS_X" and "timestep_map" in run:
        kept = np.asarray(run["timestep_map"])
        schedule = dj.schedules.from_alphas_cumprod(base.alphas[kept + 1] ** 2)
        time = lambda t: jnp.asarray(kept)[jnp.asarray(t).astype(int) - 1] * unit
    build = {"EPSILON": dj.denoisers.from_eps, "START_X": dj.denoisers.from_x0, "PREVIOUS_X": dj.denoisers.from_previous}[mean]
    denoise = build(
        network(mean, variance, batch), params, schedule, time=time, learned_variance=variance.startswith("LEARNED")
    )
    return schedule, denoise, params, time


def levels(run, meta, mean):
    """House times of a run's steps, ascending: of the schedule that :func:`rebuild` returns."""
    kept = np.asarray(run["timestep_map"]) + 1
    return np.arange(1, len(kept) + 1) if mean == "PREVIOUS_X" else kept
