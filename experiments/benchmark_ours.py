"""diffjax's side of the benchmarks: networks, and a function for each work. As a program it serves `benchmark_peers`.

A work is a dict: kind (forward, gradient, ddim, weights, dps, diffpir, ddrm, repaint), net (adm, fashion), side, batch, calls,
and for methods task (inpainting, deblurring).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.nets import UNet

ADM = dict(out_channels=3, width=32, multipliers=(1, 2, 3), blocks=1, attention=(4,), head_channels=32, scale_shift=True)


@functools.cache
def adm():
    """(net, params, schedule, channels): an ADM network of 1.9 M random weights, none of its layers zero."""
    net = UNet(**ADM)
    rng = np.random.default_rng(0)

    def leaf(path, a):
        fan_in = np.prod(a.shape[:-1]) if a.ndim > 1 else 100
        return jnp.asarray(rng.standard_normal(a.shape) / np.sqrt(fan_in) + (path[-1].key == "scale"), a.dtype)

    x = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    params = jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(())))
    return net, params, dj.schedules.discrete(dj.schedules.linear_betas(1000)), 3


@functools.cache
def fashion():
    prior = dj.zoo.load("fashion32")
    return prior.net, prior.params, prior.schedule, 1


def network(name):
    return {"adm": adm, "fashion": fashion}[name]()


def denoiser(name, params):
    net, _, schedule, _ = network(name)
    make = dj.denoisers.from_eps if name == "adm" else dj.denoisers.from_v
    return dj.denoisers.clipped(make(net.apply, params, schedule))


def half(side):
    return jnp.ones((side, side, 1)).at[:, side // 2 :].set(0)


def problem(task, side, channels):
    """(operator, y): noise of standard deviation 0.1 in [-1, 1]."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((side, side, channels)).clip(-1, 1), jnp.float32)
    A = (
        dj.operators.Mask(half(side))
        if task == "inpainting"
        else dj.operators.Blur(dj.operators.gaussian_kernel(13, 1.5), 0.03)
    )
    return A, A(x + 0.1 * jnp.asarray(rng.standard_normal(x.shape), x.dtype))


def method(work, denoise, y, A, schedule):
    """(method, kernel, timetable) of a work."""
    kind, calls = work["kind"], work["calls"]
    methods, kernels, times = dj.methods, dj.kernels, dj.timetables
    measured = dj.Measurement(y, A, 0.1)
    if kind == "ddim":
        return denoise, kernels.DDIM(), times.log_snr(schedule, calls)
    if kind == "dps":
        return methods.DPS(denoise, measured, scale=0.5), kernels.DDPM(), times.respaced(schedule, calls)
    if kind == "diffpir":
        return methods.DiffPIR(denoise, measured, lam=1.75), kernels.DDIM(zeta=0.3), times.log_snr(schedule, calls)
    if kind == "ddrm":
        return methods.DDRM(denoise, measured), kernels.Marginal(), times.log_snr(schedule, calls)
    if kind == "repaint":
        table = times.repaint(schedule, jump=5, times=5, grid=times.log_snr(schedule, calls // 4))
        return methods.RePaint(denoise, dj.Measurement(y, A)), kernels.DDPM(), table
    raise KeyError(kind)


def build(work):
    """(function without arguments that does the work, its network calls)."""
    net, params, schedule, channels = network(work["net"])
    batch, side = work["batch"], work["side"]
    shape = (side, side, channels)
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    t = jnp.full((batch,), 500.0)
    if work["kind"] == "forward":
        return ready(net.apply, params, x, t), 1
    if work["kind"] == "gradient":

        def both(params, x):
            y, back = jax.vjp(lambda x: net.apply(params, x, t), x)
            return y, back(jnp.flip(x, 0))[0]

        return ready(both, params, x), 1
    if work["kind"] == "weights":
        table = dj.timetables.log_snr(schedule, work["calls"])

        def loss(params, x):
            return dj.sample(jax.random.key(0), denoiser(work["net"], params), table, x, kernel=dj.kernels.DDIM()).x.sum()

        return ready(jax.grad(loss, (0, 1)), params, x[0]), work["calls"]

    A, y = problem(work.get("task", "inpainting"), side, channels)
    keys, ys = jax.random.split(jax.random.key(2), batch), jnp.stack([y] * batch)

    def one(params, key, y):
        way, kernel, table = method(work, denoiser(work["net"], params), y, A, schedule)
        return dj.sample(key, way, table, shape, kernel=kernel).x

    calls = len(method(work, denoiser(work["net"], params), y, A, schedule)[2])
    if len(jax.devices()) > 1 and batch > 1:
        spread = dj.parallel.shard(one, dj.parallel.mesh(), in_axes=(None, 0, 0))
        return (lambda: jax.block_until_ready(spread(params, keys, ys))), calls
    return ready(jax.vmap(one, (None, 0, 0)), params, keys, ys), calls


def ready(fn, *args):
    fn = jax.jit(fn)
    return lambda: jax.block_until_ready(fn(*args))


def export(folder):
    """Write the weights in the official code's names, with inputs and outputs to compare with: NAME.npz, NAME_check.npz."""
    from diffjax.convert import adm as official

    for name in ("adm", "fashion"):
        net, params, _, channels = network(name)
        state = {key: np.asarray(a, np.float32) for key, a in official.to_state(net, params).items()}
        np.savez(folder / f"{name}.npz", **state)
        x, t = jax.random.normal(jax.random.key(3), (2, 32, 32, channels)), jnp.array([3.0, 700.0])
        np.savez(folder / f"{name}_check.npz", x=x, t=t, y=jax.jit(net.apply)(params, x, t))


def finite(result):
    return bool(all(jnp.isfinite(a).all() for a in jax.tree.leaves(result)))


if __name__ == "__main__":
    from .benchmark_clock import serve

    serve(build, finite)
