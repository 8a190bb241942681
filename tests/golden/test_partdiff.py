"""PartDiff's latents, targets, posteriors and walks, replayed. No code was published: the recorded runs are somebody else's
reading of the formulas, in float64 and rounded to float32, with the exact network of a mixture of Gaussians moved by low.

Everything is read from the files: T, K, betas, batch, and which walks there are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load

import diffjax as dj
from diffjax.methods import partdiff
from diffjax.training.partdiff import aligned_target


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


pytestmark = pytest.mark.golden("super_resolution", "partdiff")
TOLERANCE = 1e-6  # what rounding to float32 does to values of about 3, and to their sums
BETAS = {"linear": lambda T, low, high: dj.schedules.linear_betas(T, low, high, rescale=False)}
KERNELS = {"ddpm": dj.kernels.DDPM(), "ddim": dj.kernels.DDIM()}
MOVES = {"a": "eps", "b": "unmixed", "c": "drift"}  # of the network with target "eps"


def recorded(golden_file):
    """(arrays in float64, metadata, schedule)"""
    run, meta = load(golden_file)
    run = {name: np.asarray(a, np.float64) for name, a in run.items()}
    low, high, kind = meta["beta"]
    betas = BETAS[kind](meta["T"], low, high)
    check("betas", betas, run["betas"], TOLERANCE)
    schedule = dj.schedules.discrete(betas)
    check("abar", schedule.alpha(np.arange(1, meta["T"] + 1)) ** 2, run["alphas_cumprod"], TOLERANCE)
    return run, meta, schedule


def test_latents_targets_and_posteriors(golden_file, x64):
    run, meta, schedule = recorded(golden_file)
    K, low, high, noise = meta["K"], run["x_LR"], run["x_HR"], run["train_noise"]
    check("lambda", partdiff.share(np.arange(K + 1), K), run["lambda_t"], TOLERANCE)
    for t in range(1, K + 1):
        n, lam = t - 1, partdiff.share(t, K)
        find = lambda target, t=t, n=n: aligned_target("eps", target, schedule, low, high, t, noise[n], K)
        x_t, eps = find("eps")
        check(f"x0 {t}", partdiff.mixed(low, high, lam), run["train_x0_interp"][n], TOLERANCE)
        check(f"x_t {t}", x_t, run["train_x_t"][n], TOLERANCE)
        check(f"target a {t}", eps, run["target_eps_a"][n], TOLERANCE)
        check(f"target b {t}", find("unmixed")[1], run["target_eps_b"][n], TOLERANCE)

        mean, std = partdiff.posterior(schedule, low, high, noise[n], t, t - 1, lam)
        check(f"posterior {t}", mean, run["posterior_mean"][n], TOLERANCE)
        check(f"variance {t}", std**2, run["posterior_var"][n], TOLERANCE, absolute=True)
        last = partdiff.share(t - 1, K)  # lambda of s in the posterior is the drift: two ways to the same mean
        mean = partdiff.posterior(schedule, low, high, noise[n], t, t - 1, last)[0]
        check(f"posterior c {t}", mean, run["posterior_mean_c"][n], TOLERANCE)
        x_t, eps = find("drift")
        c_0, c_t, _ = dj.process.posterior(schedule, t, t - 1)
        x0 = (x_t - schedule.sigma(t) * eps) / schedule.alpha(t)
        check(f"target c {t}", c_0 * x0 + c_t * x_t, run["posterior_mean_c"][n], TOLERANCE)
        check(f"weight {t}", partdiff.kl_weight(schedule, t, t - 1), run["snr_weight_of_KL"][n], TOLERANCE)


def image_of_high(params, x, t, lam):
    """E[high | x^_t, low]: high is a mixture, the latent has lambda of it."""
    w, mu, sd, alphas, sigmas, shift, low = params
    t = jnp.round(t).astype(int)
    a, s = alphas[t], sigmas[t]
    rest, means = x - a * (1 - lam) * low, mu + shift * low
    var = (a * lam * sd) ** 2 + s**2
    d = rest - a * lam * means
    over = (slice(None),) + (None,) * low.ndim
    r = jax.nn.softmax(jnp.log(w) - 0.5 * ((d**2).sum(tuple(range(1, d.ndim))) / var + low.size * jnp.log(var)))
    return (r[over] * (means + (a * lam * sd**2 / var)[over] * d)).sum(0)


def walked(run, meta, schedule, name):
    """(K + 1, batch, ...): the states of the walk."""
    variant, kernel = name.split("_")
    K, draws = meta["K"], run["sample_draws"]
    w, mu, sd, shift = (run[f"gmm_{part}"] for part in ("w", "mu", "sd", "cond_shift"))
    tables = tuple(jnp.asarray(f(np.arange(meta["T"] + 1.0))) for f in (schedule.alpha, schedule.sigma))

    def network(params, x, i):
        lam = 1.0 if variant == "noalign" else partdiff.share(i + 1, K)
        high, low = image_of_high(params, x, i + 1, lam), params[-1]
        return lam * high + (1 - lam) * low

    def one(low, start, rows):
        params = (w, mu, sd, *tables, shift, low)
        denoise = dj.denoisers.from_x0(network, jax.tree.map(jnp.asarray, params), schedule)
        if variant == "noalign":
            method = dj.methods.LateStart(denoise, low)
        else:
            mean = jnp.tensordot(w, mu + shift * low, 1)  # all that is known of high at t = K
            method = dj.methods.PartDiff(denoise, low, K, guess=mean, move=MOVES[variant])
        table = dj.timetables.from_times(np.arange(K, -1, -1), schedule)
        draws = dj.Draws(start, rows if kernel == "ddpm" else ())
        states = dj.sample(None, method, table, low.shape, kernel=KERNELS[kernel], recorded=draws, dtype=low.dtype,
                           trace=lambda x, row, info: x).trace  # fmt: skip
        first = dj.process.q_sample(schedule, low, K, start)
        return jnp.concatenate([first[None], states])

    rows = np.concatenate([draws[1:], np.zeros_like(draws[:1])])  # none in the last step
    return np.asarray(jax.jit(jax.vmap(one, (0, 0, 1), 1))(run["x_LR"], draws[0], rows))


def test_walks(golden_file, x64):
    run, meta, schedule = recorded(golden_file)
    K, low, high = meta["K"], run["x_LR"], run["x_HR"]
    check("x_K", dj.process.q_sample(schedule, low, K, run["sample_draws"][0]), run["x_K"], TOLERANCE)
    names = [name.removeprefix("states_") for name in run if name.startswith("states_")]
    errors = meta["mean_abs_error_to_HR_and_to_HR+(LR-HR)/K"]
    assert names and set(names) == set(errors)
    for name in names:
        states = walked(run, meta, schedule, name)
        check(name, states, run[f"states_{name}"], TOLERANCE)
        found = [np.abs(states[-1] - image).mean() for image in (high, high + (low - high) / K)]
        check(f"{name}: errors", found, errors[name], TOLERANCE)
