"""Estimates of a prior's likelihood, side by side: ``python -m experiments.likelihood``.

Bundled test images, which no shipped prior has seen. All but the flow measure one model, the chain of DDPM steps over a
log-SNR grid with the last step a discretised Gaussian: the probability of 8-bit images.

variational  DDPM's bound on -log2 p(x_0), a mean over several draws of each step's noise
lower bound  the same bound from forward trajectories: the mean of log w (Sohl-Dickstein et al. 2015, eq. 14)
annealed     -log2 of the mean of w over these trajectories (eq. 9), which tends to -log2 p(x_0) from above
flow         a bound on -log2 of the probability of another model, the probability-flow ODE (Song et al. 2021, section 4.3): of
             the image with uniform noise of one grey level, by 17 rows of Runge-Kutta and 4 probes; error: of both

bits       per dimension: less is better
error      standard error of bits, of what was drawn. That of "annealed" is to be believed where many trajectories count
effective  how many of them do: (sum w)^2 / sum w^2
seconds    for an image, compiling apart

Writes likelihood_PRIOR.json, with each step's terms and the bounds on its entropy, and a plot of these, likelihood_PRIOR.png.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.likelihood import flow, nonequilibrium, variational

from .tools import curves, provenance, records
from .tools.study import Parser, UserError, command, made, render, run, whole

LN2 = float(np.log(2))


def chain(prior, options):
    """(denoiser, kernel, table) of the model that is measured."""
    return prior.denoiser(), dj.kernels.DDPM(variance=options.variance), dj.timetables.log_snr(prior.schedule, options.levels)


def _variational(key, denoise, kernel, table, x_0, draws):
    found = jax.lax.map(lambda k: variational.bound(k, denoise, kernel, table, x_0), jax.random.split(key, draws))
    row = {"variational": (found.total.mean(), found.total.std(ddof=1) / draws**0.5, jnp.nan)}
    return row, {"steps": found.terms.mean(0), "prior": found.prior[0]}


def _annealed(key, denoise, kernel, table, x_0, draws):
    found = nonequilibrium.annealed(key, denoise, kernel, table, x_0, draws)
    unit = x_0.size * LN2
    lower = (-found.lower / unit, found.lower_error / unit, jnp.nan)
    return {"lower bound": lower, "annealed": (found.bits, found.standard_error / unit, found.effective)}, {}


def _flow(key, denoise, kernel, table, x_0, draws):
    """Of the density of one dequantisation; its error is that of the steps and of the probes."""
    of_noise, of_probes = jax.random.split(key)
    x = flow.dequantise(of_noise, x_0)
    found = flow.log_prob(denoise, table, x, probes=PROBES, key=of_probes, data_range=(-1, 1))
    return {"flow": (found.bits, (found.solver_error + found.probe_error) / (x_0.size * LN2), jnp.nan)}, {}


# What measures an image: (key, denoise, kernel, table, x_0, draws) -> ({name: (bits, error, effective)}, {more arrays}).
# Another likelihood is another line.
ESTIMATORS = [_variational, _annealed, _flow]
FLOW_ROWS, PROBES = 17, 4  # the flow is of another model: it does not look at the kernel, and its table is of its own


def measure(prior, images, options):
    """(rows of the table, per-step arrays averaged over images): each estimator compiled once, one image after the other."""
    denoise, kernel, table = chain(prior, options)
    rows, steps = [], {}
    for n, estimator in enumerate(ESTIMATORS):
        walk = dj.timetables.log_snr(prior.schedule, FLOW_ROWS) if estimator is _flow else table
        one = jax.jit(lambda key, denoise, x, f=estimator, walk=walk: f(key, denoise, kernel, walk, x, options.draws))
        variational.on_grid(images)
        program = one.lower(jax.random.key(0), denoise, images[0]).compile()
        for j, x in enumerate(images):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(options.seed), n), j)
            begin = time.perf_counter()
            found, more = jax.tree.map(np.asarray, program(key, denoise, x))
            seconds = time.perf_counter() - begin
            for name, (bits, error, effective) in found.items():
                rows.append({"image": j, "estimate": name, "bits": float(bits), "error": float(error),
                             "effective": None if np.isnan(effective) else float(effective), "seconds": seconds})  # fmt: skip
                print(f"image {j}  {name}: {bits:.4f} +- {error:.4f} bits, {seconds:.2f} s", flush=True)
            for name, value in more.items():
                steps[name] = steps.get(name, 0) + np.asarray(value, float) / len(images)
    return rows, steps


def averages(rows):
    """One row for each estimate: means over images; ``error`` of the mean, given the images."""
    out = []
    for name in dict.fromkeys(r["estimate"] for r in rows):
        of = [r for r in rows if r["estimate"] == name]
        effective = [r["effective"] for r in of if r["effective"] is not None]
        out.append({
            "image": "mean", "estimate": name, "bits": np.mean([r["bits"] for r in of]),
            "error": np.sqrt(np.sum([r["error"] ** 2 for r in of])) / len(of),
            "effective": np.mean(effective) if effective else None, "seconds": np.mean([r["seconds"] for r in of]),
        })  # fmt: skip
    return out


def plot(prior, options, steps, variance, path):
    """What each step costs, and between which bounds the entropy of the reverse step lies; the file's numbers."""
    _, _, table = chain(prior, options)
    lower, upper = nonequilibrium.entropy_bounds(prior.schedule, table)
    tight = nonequilibrium.entropy_bounds(prior.schedule, table, variance)[1]
    t = np.asarray(table.t, float)
    cost = {"title": "bits per dimension of each step (the last: the decoder)", "x": "t", "log": True,
            "lines": [("bound", t, steps["steps"])]}  # fmt: skip
    entropy = {"title": "H(X_s | X_t) in bits per dimension", "x": "t",
               "lines": [("lower bound", t, lower / LN2), ("upper", t, upper / LN2),
                         ("upper, given the variance", t, tight / LN2)]}  # fmt: skip
    curves.lines([cost, entropy], path)
    number = lambda a: [None if not np.isfinite(v) else float(f"{v:.5g}") for v in a]
    return {"t": number(t), "bound": number(steps["steps"]), "entropy lower": number(lower / LN2),
            "entropy upper": number(upper / LN2), "entropy upper given variance": number(tight / LN2)}  # fmt: skip


def parser():
    p = Parser("experiments.likelihood", __doc__)
    p.add_argument("--prior", default="fashion32", help="a prior whose images are bundled: 32 x 32, grey or colour")
    p.add_argument("--count", type=whole(1), default=8, help="images (default 8)")
    p.add_argument("--levels", type=whole(2), default=100, help="steps of the chain (default 100)")
    p.add_argument("--draws", type=whole(2), default=32, help="trajectories, and draws of each step (default 32)")
    p.add_argument("--variance", default="large", choices=["small", "large", "learned_range", "learned"],
                   help="of the reverse steps (default large)")  # fmt: skip
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--quick", action="store_true", help="two images, ten steps, four draws")
    p.add_argument("--out", **provenance.OUT)
    return p


def main(argv=None) -> int:
    options = parser().parse(argv)
    if options.quick:
        options.count, options.levels, options.draws = 2, 10, 4
    out = made(options.out)
    prior = dj.zoo.load(options.prior)
    images = jnp.asarray(dj.zoo.bundled.images(dj.zoo.bundled.for_channels(prior.shape[-1]))[0][: options.count])
    if images.shape[1:] != prior.shape:
        raise UserError(f"prior {options.prior!r} is for images of {prior.shape}, those bundled are {images.shape[1:]}")
    begin = time.perf_counter()
    rows, steps = measure(prior, images, options)
    name = f"likelihood_{prior.name}"
    of_steps = plot(prior, options, steps, float(jnp.var(images)), out / f"{name}.png")
    settings = {k: getattr(options, k) for k in ("prior", "levels", "draws", "variance", "seed")}
    rows += [{k: float(v) if isinstance(v, np.floating) else v for k, v in r.items()} for r in averages(rows)]
    kept = [{k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    records.write(name, command("experiments.likelihood", argv), kept, out, settings=settings, images=len(images),
                  seconds=round(time.perf_counter() - begin, 1), steps=of_steps)  # fmt: skip
    print("\n" + render([r for r in kept if isinstance(r["image"], str)]))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
