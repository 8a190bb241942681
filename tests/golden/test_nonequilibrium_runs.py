"""Sohl-Dickstein et al. 2015: schedules, network, bound and samplers of the released code; binomial diffusion of the paper.

The released code has no learned betas, multiplies its KL by T where it draws one of T - 1 steps, and keeps an image's known
half clean at every level; what of that is a slip stands here, not in the library.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gd_closed_form import channels_last, quick_jit
from golden_files import check, load

import diffjax as dj
from diffjax.likelihood import binomial, nonequilibrium, variational
from diffjax.nets.nonequilibrium import MultiScaleNet

TOLERANCE = 1e-9


def network(kwargs):
    """The recorded network's configuration."""
    dense = kwargs["n_hidden_dense_lower_output"] if kwargs["n_layers_dense_lower"] > 0 else 0
    return MultiScaleNet(
        bumps=kwargs["n_temporal_basis"],
        conv_width=kwargs["n_hidden_conv"],
        conv_layers=kwargs["n_layers_conv"],
        scales=kwargs["n_scales"],
        dense_width=kwargs["n_hidden_dense_lower"],
        dense_features=dense,
        upper=(kwargs["n_hidden_dense_upper"],) * (kwargs["n_layers_dense_upper"] - 1),
    )


def parameters(run, kwargs):
    """The recorded parameters as ours: Theano convolves (the kernel is turned), and flattens images with channels first."""
    tree, side = {}, kwargs["spatial_width"]

    def put(names, leaf, value):
        inner = tree
        for name in names:
            inner = inner.setdefault(name, {})
        inner[leaf] = jnp.asarray(value)

    for name in (n for n in run if n.startswith("p/")):
        *_, part, leaf = name.split("/")
        leaf, kind = leaf.rsplit(".", 1) if "." in leaf else (part, leaf)
        value, ours = run[name], "kernel" if kind == "W" else "bias"
        if leaf.startswith("layer"):
            layer, scale = leaf.split("_")
            put((layer, scale), ours, value[:, :, ::-1, ::-1].transpose(2, 3, 1, 0) if kind == "W" else value)
            continue
        where = {"MLP_dense_lower": "lower", "MLP_dense_upper": "upper"}[part]
        if where == "lower" and leaf == "linear_0" and kind == "W":
            C = kwargs["n_colors"]
            value = value.reshape(C, side, side, -1).transpose(1, 2, 0, 3).reshape(value.shape)
        put((where, leaf.replace("_", "")), ours, value)
    return {"params": tree}


def model(run, meta):
    """(denoiser, betas) of the recorded model; takes the recorded batch as one array."""
    kwargs = meta["kwargs"]
    T, bumps = kwargs["trajectory_length"], kwargs["n_temporal_basis"]
    first = kwargs.get("step1_beta", 0.001)
    betas = nonequilibrium.learned_betas(np.zeros(bumps), T, first_beta=first)
    basis = nonequilibrium.temporal_basis(T, bumps)
    return nonequilibrium.denoiser(network(kwargs).apply, parameters(run, kwargs), betas, basis), betas


def official_cost(run, denoise, betas, x_0, t, noise):
    """(x_t, posterior, reverse Gaussian, cost in bits) as coded: of a whole batch at one t, T times its KL."""
    T, colours = len(betas), x_0.shape[-1]
    kernel = dj.kernels.DDPM(denoise.schedule, variance="learned")
    table = dj.timetables.from_times(np.arange(T, -1, -1))
    row = jax.tree.map(lambda a: jnp.asarray(a)[T - 1 - t], variational.rows(kernel, table, x_0.dtype))
    p = denoise(dj.process.q_sample(denoise.schedule, x_0, row.t, noise), row.t)
    posterior, reverse = variational.gaussians(kernel, p, x_0, row)
    entropy = lambda v: dj.process.entropy(v) / math.log(2)
    edges = entropy(betas[0]) - entropy(1 - np.prod(1 - betas)) + entropy(1.0) - entropy(1.0)  # the last: the null model
    cost = colours * (T * variational.term(kernel, p, x_0, row) + edges)
    return p.x, posterior, reverse, cost


@pytest.mark.golden("nonequilibrium", "sohl_")
def test_released_code(golden_file):
    run, meta = load(golden_file)
    if "kwargs" not in meta:
        return schedules(golden_file, run)
    kwargs, T = meta["kwargs"], meta["kwargs"]["trajectory_length"]
    label = golden_file.stem
    check(f"{label} basis", nonequilibrium.temporal_basis(T, kwargs["n_temporal_basis"]), run["temporal_basis"], TOLERANCE)
    with jax.enable_x64(True):
        denoise, betas = model(run, meta)
        check(f"{label} betas", betas, run["beta_arr"], TOLERANCE)
        check(f"{label} all of them", 1 - np.prod(1 - betas), run["beta_full"], TOLERANCE)
        data = jnp.asarray(channels_last(run["X0"]))

        cost = quick_jit(lambda x_0, t, noise: official_cost(run, denoise, betas, x_0, t, noise))
        for case in sorted({name.split("/")[0] for name in run if re.match(r"r\d+/", name)}):
            get = lambda name: run[f"{case}/{name}"]
            t = int(np.squeeze(get("t")))
            x_0 = data + kwargs.get("uniform_noise", 0.0) * (channels_last(get("u_x")) - 0.5)
            x_t, (q_mean, q_log), (mean, log_var), bits = cost(x_0, t, channels_last(get("N")))
            got = {"X_noisy": x_t, "mu_post": q_mean, "mu": mean, "sigma": jnp.exp(0.5 * log_var)}
            for name, value in got.items():
                check(f"{label} {case} {name}", value, channels_last(get(name)), TOLERANCE)
            check(f"{label} {case} sigma_post", jnp.exp(0.5 * q_log).reshape(1, 1, 1, 1), get("sigma_post"), TOLERANCE)
            check(f"{label} {case} cost", bits, get("cost_bits"), TOLERANCE)
        fractional(label, run, denoise, betas, data)
        samples(label, run, meta, denoise, data)
    gauss(label, run, betas)


def fractional(label, run, denoise, betas, x):
    """Between whole times the network's basis and beta are interpolated."""
    at = jnp.asarray(run["frac_t"]).squeeze()
    found = quick_jit(lambda: denoise.inner.apply(denoise.inner.params, jnp.asarray(x), at))()
    check(f"{label} fractional mean", found[0], channels_last(run["frac_mu"]), TOLERANCE)
    check(f"{label} fractional sigma", jnp.exp(0.5 * found[1]), channels_last(run["frac_sigma"]), TOLERANCE)
    i = float(run["frac_t"].squeeze())
    check(f"{label} fractional beta", np.interp(i, np.arange(len(betas)), betas), run["frac_beta"].squeeze(), TOLERANCE)


def samples(label, run, meta, denoise, data):
    """T - 1 steps from x_T, noise in the last one too: they end at our t = 1. The known half is the right one, clean
    from the start; in denoising the measurement is also the start."""
    T = meta["kwargs"]["trajectory_length"]
    stream = np.random.RandomState(meta["sample_seed"])
    draws = jnp.asarray(np.stack([channels_last(stream.normal(size=run["X0"].shape)) for _ in range(T)]))
    check(f"{label} draw", draws[0], channels_last(run["sample_draw0"]), TOLERANCE)
    table = dj.timetables.from_times(np.arange(T, 0, -1))
    kernel = dj.kernels.DDPM(variance="learned")
    recorded = dj.Draws(None, draws[1:], None)
    right = np.zeros(data.shape)
    right[..., data.shape[-2] // 2 :, :] = 1
    y = data + meta["denoise_sigma"] * draws[0]
    measured = lambda y, mask, std: dj.Measurement(y, dj.operators.Mask(mask), std, (-20.0, 20.0))
    product = lambda *args: dj.methods.Nonequilibrium(denoise, measured(*args))
    methods = {
        "plain": (denoise, draws[0]),
        "inpaint": (product(right * data, right, 0.0), right * data + (1 - right) * draws[0]),
        "denoise": (product(y, np.ones(data.shape), meta["denoise_sigma"]), y),
    }
    walk = lambda method, start: dj.sample(None, method, table, start, kernel=kernel, recorded=recorded, trace=state).trace
    traces = quick_jit(lambda: {name: walk(*given) for name, given in methods.items()})()
    for name, trace in traces.items():
        check(f"{label} {name} first", trace[0], channels_last(run[f"sample_{name}_first"]), TOLERANCE)
        check(f"{label} {name} last", trace[-1], channels_last(run[f"sample_{name}_last"]), TOLERANCE)


def state(x, row, info):
    return x


def gauss(label, run, betas):
    """Standard-normal data: each KL of the exact reverse process, and what multiplying by T instead of T - 1 does to K.

    The exact reverse of a step is the step itself: N(sqrt(1 - beta) x_t, beta). Its KL from the posterior, on average."""
    abar = np.cumprod(1 - betas)
    t = np.arange(1, len(betas))
    beta, a, a_prev = betas[t], abar[t], abar[t - 1]
    c_0, c_t = beta * np.sqrt(a_prev) / (1 - a), (1 - a_prev) * np.sqrt(1 - beta) / (1 - a)
    var = beta * (1 - a_prev) / (1 - a)
    # E |c_0 x_0 + (c_t - sqrt(1 - beta)) x_t|^2 with E x_0 x_t = sqrt(abar)
    off = c_t - np.sqrt(1 - beta)
    error = c_0**2 + off**2 + 2 * c_0 * off * np.sqrt(a)
    kl = 0.5 * (np.log(beta / var) + (var + error) / beta - 1) / math.log(2)
    entropy = lambda v: 0.5 * (1 + np.log(2 * np.pi * v)) / math.log(2)
    edges = entropy(1 - a[-1]) - entropy(betas[0])  # H_q(x_T | x_0) - H_q(x_1 | x_0); H_p(x_T) is the null model's
    check(f"{label} K of normal data", edges - kl.sum(), run["gauss_K_minus_null_bits_sum"], 1e-9, absolute=True)
    coded = edges - len(betas) * kl.mean()
    check(f"{label} K as coded", coded, run["gauss_K_minus_null_bits_as_coded"], 1e-9, absolute=True)
    check(f"{label} KL of normal data, nats", math.log(2) * kl, run["gauss_KL_t"], TOLERANCE)
    assert abs(edges - kl.sum()) < 1e-12 < 0.05 < -coded


def schedules(path, run):
    """Betas and basis of other lengths, and binomial diffusion."""
    unused = set(run)
    for name in sorted(n for n in run if n.startswith(("beta_", "alphabar_", "basis_"))):
        kind, T, rest, *every = name.split("_")
        T = int(T[1:])
        if kind == "basis":
            got = nonequilibrium.temporal_basis(T, int(rest[1:]))[:, :: int(every[0].removeprefix("every"))]
        else:
            got = nonequilibrium.learned_betas(np.zeros(10), T, first_beta=float(rest[1:]))
            got = got if kind == "beta" else np.cumprod(1 - got)
        check(f"{path.stem} {name}", got, run[name], TOLERANCE)
        unused.remove(name)
    betas = dj.schedules.harmonic_betas(len(run["binom_beta"]))
    check(f"{path.stem} binom_beta", betas, run["binom_beta"], TOLERANCE)
    with jax.enable_x64(True):
        process, x_0 = binomial.Binomial(betas), jnp.asarray(run["binom_x0"], float)
        marginal = [process.marginal(x_0, t) for t in range(1, process.T + 1)]
        check(f"{path.stem} binom_marginal_p1", marginal, run["binom_marginal_p1"], TOLERANCE)
        x_t = jnp.asarray(run["binom_xt"], float)
        posterior = [process.posterior(x_t[t - 1], x_0, t) for t in range(2, process.T + 1)]
        check(f"{path.stem} binom_post_p1", posterior, run["binom_post_p1"], TOLERANCE)
    assert unused == {"binom_beta", "binom_marginal_p1", "binom_post_p1", "binom_x0", "binom_xt"}
