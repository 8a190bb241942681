"""The two small examples of Sohl-Dickstein et al. 2015, trained here: ``python -m experiments.nonequilibrium``.

swiss roll  points of the plane, 40 Gaussian steps, a radial network; with the released betas and with learned ones. K - L_null
            in bits per point, on points not trained on (more is better), and the annealed estimate of log p
heartbeat   20 bits, a 1 at every fifth, the phase uniform: log2 5 = 2.322 bits are in it. Binomial diffusion; the bound on
            -log2 p in bits per sequence (less is better), the annealed estimate, and the share of samples that are heartbeats

Writes nonequilibrium.json, and nonequilibrium.png: the roll diffused (top), undone from noise by the model (middle), and the
drift of the reverse steps, f_mu(x, t) - x (bottom), as the paper's first figure.
"""

from __future__ import annotations

import functools
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.likelihood import binomial, nonequilibrium, variational
from diffjax.nets.nonequilibrium import MLP, RadialNet

from .tools import curves, provenance, records
from .tools.study import Parser, command, made, run

LN2 = math.log(2)
ROLL_STEPS, PERIOD, LENGTH = 40, 5, 20
KERNEL = dj.kernels.DDPM(variance="learned")


# --- Swiss roll ---


def roll(key, n):
    """(n, 2) points, mean 0 and variance 1 along both axes."""
    key_t, key_noise = jax.random.split(key)
    angle = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(key_t, (n,)))
    x = jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], -1) + 0.25 * jax.random.normal(key_noise, (n, 2))
    return (x - jnp.asarray([2.0000, 0.2122])) / jnp.asarray([6.6277, 6.9557])


def roll_model(params, learned):
    """The paper's model: a radial network, its betas fixed or learned."""
    coefficients = params["betas"] if learned else jax.lax.stop_gradient(0 * params["betas"])
    betas = nonequilibrium.learned_betas(coefficients, ROLL_STEPS)
    return nonequilibrium.denoiser(RadialNet(centres=64).apply, params["net"], betas)


def roll_loss(params, key, x_0, learned):
    """-K of a minibatch in nats per point, one step drawn for each point. The noise is held fixed, so that the gradient
    reaches the betas (section 2.4.1)."""
    denoise = roll_model(params, learned)
    kernel = dj.replace(KERNEL, schedule=denoise.schedule)
    rows = variational.rows(kernel, dj.timetables.from_times(np.arange(ROLL_STEPS, -1, -1)))
    rows = jax.tree.map(jnp.asarray, rows)

    def term(n, key, x_0):
        row = jax.tree.map(lambda a: a[n], rows)
        x_t = dj.process.q_sample(denoise.schedule, x_0, row.t, jax.random.normal(key, x_0.shape))
        return variational.term(kernel, denoise(x_t, row.t), x_0, row, decoder="forward")

    def one(key, x_0):
        key_t, key_noise, key_last = jax.random.split(key, 3)
        n = jax.random.randint(key_t, (), 0, ROLL_STEPS - 1)
        total = (ROLL_STEPS - 1) * term(n, key_noise, x_0) + term(ROLL_STEPS - 1, key_last, x_0)
        return total + variational.prior_term(denoise.schedule, x_0, jnp.asarray(float(ROLL_STEPS)))

    return x_0.shape[-1] * LN2 * jax.vmap(one)(jax.random.split(key, len(x_0)), x_0).mean()


def trained(loss, params, steps, rate, key):
    """``params`` after Adam with a cosine decay; one scan."""
    import optax

    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))

    def update(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        move, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, move), state), value

    scan = jax.jit(lambda params, keys: jax.lax.scan(update, (params, optimiser.init(params)), keys))
    (params, _), values = scan(params, jax.random.split(key, steps))
    return params, np.asarray(values)


def gains(model, table, key, x_0, draws):
    """(K, annealed log p) of a point, less the null model's mean, in bits; and the effective number of trajectories."""
    key_bound, key_annealed = jax.random.split(key)
    bound = lambda key: nonequilibrium.lower_bound(key, model, KERNEL, table, x_0)
    found = jax.vmap(bound)(jax.random.split(key_bound, draws))
    chance = nonequilibrium.annealed(key_annealed, model, KERNEL, table, x_0, 2 * draws, decoder="forward")
    null = found.null[0]
    return (found.total.mean() - null) / LN2, (chance.log_p - null) / LN2, chance.effective


def swiss_roll(options):
    """(rows, what the picture shows)."""
    steps, points, draws = (300, 200, 4) if options.quick else (4000, 1000, 16)
    net = RadialNet(centres=64)
    inner = net.init(jax.random.key(1), jnp.zeros(2), jnp.zeros(10))
    start = {"net": inner, "betas": jnp.zeros(10)}
    held_out = roll(jax.random.key(2), points)
    table = dj.timetables.from_times(np.arange(ROLL_STEPS, -1, -1))
    rows, model = [], None
    for learned in (False, True):
        loss = lambda p, key, learned=learned: roll_loss(p, key, roll(jax.random.fold_in(key, 1), 256), learned)
        begin = time.perf_counter()
        params, _ = trained(loss, start, steps, 3e-3, jax.random.key(3))
        seconds = time.perf_counter() - begin
        model = roll_model(params, learned)

        evaluate = lambda a, model=model: gains(model, table, *a, draws)
        inputs = jax.random.split(jax.random.key(4), points), held_out
        k, p, effective = (np.asarray(a, float) for a in jax.lax.map(evaluate, inputs, batch_size=100))
        error = lambda a: float(a.std() / points**0.5)
        rows.append({
            "example": "swiss roll", "betas": "learned" if learned else "fixed", "K - null, bits": float(k.mean()),
            "error": error(k), "annealed - null, bits": float(p.mean()), "annealed error": error(p),
            "effective": float(effective.mean()), "last alpha": float(model.schedule.alpha(jnp.asarray(ROLL_STEPS))),
            "training, s": round(seconds, 1),
        })  # fmt: skip
    return rows, (model, held_out, table)


def picture(model, points, table, path):
    """The paper's first figure."""
    points = points[:800]
    keys = jax.random.split(jax.random.key(5), len(points))
    up = jax.vmap(lambda k, x: nonequilibrium.forward(k, model.schedule, table, x))(keys, points)
    down = jax.vmap(lambda k: nonequilibrium.reverse(k, model, KERNEL, table, (2,)))(keys)[:, ::-1]
    # the step to t = 0 is not the network's: the forward one reversed (appendix A.2), here its mean
    down = down.at[:, 0].set(model.schedule.alpha(jnp.asarray(1)) * down[:, 1])
    shown = (0, ROLL_STEPS // 2, ROLL_STEPS)
    at = np.stack(np.meshgrid(np.linspace(-2.2, 2.2, 16), np.linspace(-2.2, 2.2, 16)), -1).reshape(-1, 2)

    def drift(t):
        row = jax.tree.map(
            lambda a: jnp.asarray(a)[ROLL_STEPS - t], variational.rows(dj.replace(KERNEL, schedule=model.schedule), table)
        )
        mean = jax.vmap(lambda x: KERNEL.transition(model(x, row.t), x, row)[0])(jnp.asarray(at, jnp.float32))
        return at, np.asarray(mean) - at

    grid = [[np.asarray(up[:, t]) for t in shown], [np.asarray(down[:, t]) for t in shown],
            [drift(max(t, 2)) for t in shown]]  # fmt: skip
    curves.clouds(grid, [f"t = {t}" for t in shown], ["q, forward", "p, reverse", "drift"], path)


# --- heartbeat ---


def heartbeats(key, n):
    """(n, 20) bits."""
    phase = jax.random.randint(key, (n, 1), 0, PERIOD)
    return (jnp.arange(LENGTH) % PERIOD == phase).astype(jnp.float32)


def guess(params, keep, x, t):
    """Logits of the clean bits."""
    kept = keep[t]
    told = jnp.stack([kept, jnp.log(kept + 1e-3), jnp.sqrt(kept)])
    return MLP((128, 128, LENGTH), True, last=False).apply(params, jnp.concatenate([2 * x - 1, told]))


def heartbeat(options):
    T, steps, count = (50, 300, 50) if options.quick else (400, 4000, 1000)
    process = binomial.Binomial(dj.schedules.harmonic_betas(T))
    keep = jnp.asarray(process.keep(), jnp.float32)
    start = MLP((128, 128, LENGTH), True, last=False).init(jax.random.key(6), jnp.zeros(LENGTH + 3))
    reverse_of = lambda params: binomial.from_clean(process, functools.partial(guess, params, keep))

    def loss(params, key):
        """The bound in bits, one step drawn for each sequence: T of its term, of t = 1 its own."""
        reverse = reverse_of(params)

        def one(key, x_0):
            key_t, key_x = jax.random.split(key)
            t = jax.random.randint(key_t, (), 1, T + 1)
            x_t = jax.random.bernoulli(key_x, process.marginal(x_0, t)).astype(x_0.dtype)
            return T * binomial.term(process, reverse, x_0, x_t, t)

        key_x, key = jax.random.split(key)
        return jax.vmap(one)(jax.random.split(key, 256), heartbeats(key_x, 256)).mean()

    begin = time.perf_counter()
    params, _ = trained(loss, start, steps, 2e-3, jax.random.key(7))
    seconds = time.perf_counter() - begin
    reverse, x_0 = reverse_of(params), heartbeats(jax.random.key(8), count)

    @jax.jit
    def evaluate(inputs):
        key, x_0 = inputs
        log_p, _, effective, _ = binomial.annealed(key, process, reverse, x_0, 16)
        return binomial.bound(jax.random.fold_in(key, 1), process, reverse, x_0).total, -log_p / LN2, effective

    keys = jax.random.split(jax.random.key(9), count)
    bits, annealed, effective = (np.asarray(a, float) for a in jax.lax.map(evaluate, (keys, x_0), batch_size=50))
    drawn = jax.jit(jax.vmap(lambda k: binomial.sample(k, process, reverse, (LENGTH,))[-1]))(keys)
    right = (np.asarray(drawn)[:, None] == np.asarray(heartbeats_of())[None]).all(-1).any(1)
    return [{
        "example": "heartbeat", "betas": "fixed", "steps": T, "bound, bits": float(bits.mean()),
        "error": float(bits.std() / count**0.5), "annealed, bits": float(annealed.mean()),
        "annealed error": float(annealed.std() / count**0.5), "effective": float(effective.mean()),
        "exact, bits": math.log2(PERIOD), "heartbeats": float(right.mean()), "training, s": round(seconds, 1),
    }]  # fmt: skip


def heartbeats_of():
    """The five there are."""
    return (np.arange(LENGTH) % PERIOD == np.arange(PERIOD)[:, None]).astype(np.float32)


# --- the program ---


def main(argv=None) -> int:
    p = Parser("experiments.nonequilibrium", __doc__)
    p.add_argument("--quick", action="store_true", help="300 steps of training: to try the program, not to report")
    p.add_argument("--out", **provenance.OUT)
    options = p.parse(argv)
    out = made(options.out)
    begin = time.perf_counter()
    rows, shown = swiss_roll(options)
    picture(*shown, out / "nonequilibrium.png")
    for row in rows:
        print(row, flush=True)
    rows += heartbeat(options)
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    seconds = round(time.perf_counter() - begin, 1)
    print(records.write("nonequilibrium", command("experiments.nonequilibrium", argv), rows, out, seconds=seconds))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
