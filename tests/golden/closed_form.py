"""The closed-form network of the recorded inpainting runs: the exact denoiser of a mixture of diagonal Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj


def network(params, x, i):
    """(eps, variance channels) of one recorded batch x at original index i. The fact sheet's section 10.1."""
    w, mu, var, bar, kind, S = params
    A = bar[i.astype(int)]
    x_k = x[None]
    tot = A * var[:, None] + 1 - A
    d = x_k - jnp.sqrt(A) * mu[:, None]
    axes = tuple(range(2, d.ndim))
    log_r = jnp.log(w)[:, None] - 0.5 * (d**2 / tot + jnp.log(tot)).sum(axes)
    r = jax.nn.softmax(log_r, 0).reshape(log_r.shape + (1,) * (x.ndim - 1))
    mean = (r * (mu[:, None] + jnp.sqrt(A) * var[:, None] / tot * d)).sum(0)
    eps = (x - jnp.sqrt(A) * mean) / jnp.sqrt(1 - A)
    u = i / S
    channels = [
        jnp.tanh(0.7 * x + 0.5 * jnp.cos(jnp.pi * u)),
        -jnp.ones_like(x),
        jnp.ones_like(x),
        -4 + 2 * u + 0.3 * jnp.tanh(x),
    ]
    return eps, sum(k * c for k, c in zip(kind, channels))


VARIANCE_CHANNELS = ("range", "small", "large", "learned")


def denoiser(run, meta, dtype):
    """(schedule, unclipped denoiser) of a run."""
    base = dj.schedules.discrete(run["base_betas"])
    kind = np.array([meta["variance_channels"] == name for name in VARIANCE_CHANNELS], np.float64)
    S = np.float64(len(run["base_betas"]))
    params = (run["gm_w"], run["gm_mu"], run["gm_var"], np.cumprod(1 - run["base_betas"]), kind, S)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    return base, dj.denoisers.from_eps(network, params, base)


def draw(run, n, shape):
    """Draw number n, broadcast to ``shape`` (an axis the code did not draw has length 1)."""
    size = run["draw_shape"][n]
    size = size[size > 0]
    if run["draw_start"][n] < 0:
        return np.zeros(shape)
    flat = run["draw_data"][run["draw_start"][n] :][: int(np.prod(size))]
    return np.broadcast_to(flat.reshape(size), shape).astype(np.float64)


def draws_by_step(run, meta):
    """{(loop step, purpose): [draw numbers in order]}"""
    found = {}
    for n, (step, purpose) in enumerate(zip(run["draw_step"], run["draw_purpose"])):
        found.setdefault((int(step), meta["purpose_codes"][purpose]), []).append(n)
    return found


def compose_climb(schedule, times, noises):
    """One jump's unit noise from the draws of successive one-step climbs through ``times`` (lowest first)."""
    x, std = 0.0, None
    for t, s, z in zip(times[1:], times[:-1], noises):
        a, b = dj.process.transition(schedule, np.float64(t), np.float64(s))
        x = a * x + b * z
    std = dj.process.transition(schedule, np.float64(times[-1]), np.float64(times[0]))[1]
    return x / std
