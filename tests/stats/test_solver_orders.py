"""The order of the ODE solvers from the very top of every bundled schedule, on every grid: Gaussian data, whose flow is known.

Kernels are planned as ``sample`` plans them and stepped row by row. All tables of one kernel run in one program: schedules
enter it as the numbers they have at the table's times."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.base import Prediction, pytree, replace

MEAN = np.array([0.3, -0.5, 0.0, 0.8, 0.3, 0.3])
VARIANCE = np.array([0.01, 0.1, 0.4, 2.0, 0.25, 1.0])
GAUSSIAN = dj.priors.gaussian(MEAN, VARIANCE)
START = np.array([1.3, -0.9, 0.7, 1.1, -1.6, 0.4])  # in standard deviations of x at the first time; the flow keeps it

SCHEDULES = {
    "linear": dj.schedules.discrete(dj.schedules.linear_betas(1000)),
    "cosine": dj.schedules.discrete(dj.schedules.cosine_betas(1000)),
    "scaled linear": dj.schedules.discrete(dj.schedules.scaled_linear_betas(1000)),
    "sr3": dj.schedules.discrete(dj.schedules.sr3_betas(2000)),
    "harmonic": dj.schedules.discrete(dj.schedules.harmonic_betas(1000)),
    "VP": dj.schedules.VP(),
    "SubVP": dj.schedules.SubVP(),
    "VE": dj.schedules.VE(),
    "EDM": dj.schedules.EDM(80),
    "flow": dj.schedules.RectifiedFlow(),
}
GRIDS = {  # and the log-SNR up to which the error is taken: grids that are equal in t have few rows beyond
    "uniform": (dj.timetables.uniform, 0.0),
    "quadratic": (dj.timetables.quadratic, 0.0),
    "log_snr": (dj.timetables.log_snr, 6.0),
    "karras": (dj.timetables.karras, 6.0),
    "respaced": (dj.timetables.respaced, 0.0),
}
ROWS = (80, 320)
# alpha of harmonic betas falls like sqrt(T - t): steps of 1 / n in t begin with one of sqrt(1 / n) in alpha
CASES = [(s, g) for s in SCHEDULES for g in (GRIDS if s != "harmonic" else ("log_snr", "karras"))]
CASES = [(s, g) for s, g in CASES if g != "respaced" or SCHEDULES[s].discrete]


def case(kernel, schedule, grid, n, most):
    """(planned rows of the walk down to the grid's log-SNR, filled up with rows that stay; times and what the schedule is
    there; start; exact end)"""
    make, end = grid
    table = make(schedule, n)
    table = table[: int((schedule.log_snr(table.s) <= end).sum())]
    last = float(table.s[-1])
    table = dj.timetables.from_rows([*zip(table.t, table.s, table.r), *[(last,) * 3] * (most - len(table))])
    rows = replace(table.rows(), k=replace(kernel, schedule=schedule).plan(table))
    times = np.append(table.t, last)
    if hasattr(rows.k.move, "t_mid"):  # where the kernel looks within a row
        times = np.concatenate([rows.k.move.t_mid, times])
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    law = lambda n: alpha[n] * MEAN + np.sqrt(alpha[n] ** 2 * VARIANCE + sigma[n] ** 2) * START
    return rows, (times, alpha, sigma), law(-1 - most), law(-1)


@jax.jit
def walk(kernel, rows, nodes, x, prior=GAUSSIAN):
    times, alphas, sigmas = nodes

    def predict(x, t):
        n = jnp.argmin(jnp.abs(times - t))
        a, s = alphas[n], sigmas[n]
        return Prediction(*prior.denoise(x, a, s), None, x, a, s)

    def body(carry, row):
        return kernel.step(predict, *carry, row, jnp.zeros_like(x)), None

    return jax.lax.scan(body, (x, kernel.init(x)), rows)[0][0]


def errors(kernel, cases, rows=ROWS):
    """(cases, len(rows)): the largest error over the pixels, in standard deviations of x."""
    runs = [case(kernel, SCHEDULES[s], GRIDS[g], n, max(rows)) for s, g in cases for n in rows]
    planned, nodes, starts, ends = jax.tree.map(lambda *a: np.stack(a), *runs)
    with jax.enable_x64(True):
        got = jax.vmap(walk, (None, 0, 0, 0))(kernel, planned, nodes, starts)
    spread = np.sqrt(nodes[1][:, -1:] ** 2 * VARIANCE + nodes[2][:, -1:] ** 2)
    return np.abs((np.asarray(got) - ends) / spread).max(1).reshape(len(cases), len(rows))


def order(kernel, cases, rows=ROWS, errors=errors):
    coarse, fine = errors(kernel, cases, rows).T
    return np.log2(coarse / fine) / np.log2(rows[1] / rows[0])


K = dj.kernels
SOLVERS = {  # and their order
    "euler": (K.Euler(), 1),
    "ddim": (K.DDIM(), 1),
    "heun": (K.Heun(), 2),
    "2m": (K.DPMSolverPP2M(), 2),
    "3m": (K.DPMSolverPP3M(), 3),
    "unipc2": (K.UniPC(order=2), 3),  # the corrector adds one
    "unipc3": (K.UniPC(order=3), 4),
    "rk4": (K.RK4(), 4),
}


@pytest.mark.parametrize(("kernel", "expected"), SOLVERS.values(), ids=SOLVERS)
def test_solvers_keep_their_order_from_the_top(kernel, expected):
    """Of 80 steps of EDM that are equal in sigma one lies below sigma = 1: orders above 2 begin later."""
    cases = [c for c in CASES if expected <= 2 or c != ("EDM", "uniform")]
    for name, found in zip(cases, order(kernel, cases)):
        assert 0.85 * expected < found < 1.2 * expected, (name, found)


MIXTURE = dj.priors.mixture(
    [0.3, 0.5, 0.2], np.array([MEAN, -MEAN[::-1], 0.5 * np.roll(MEAN, 2)]), VARIANCE * [[1], [0.5], [2]]
)
CURVED = [
    ("linear", "log_snr"),
    ("cosine", "uniform"),
    ("cosine", "log_snr"),
    ("VP", "uniform"),
    ("VE", "log_snr"),
    ("flow", "uniform"),
]


def ends_of(kernel, cases):
    planned, nodes, starts = jax.tree.map(lambda *a: np.stack(a), *[c[:3] for c in cases])
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(walk, (None, 0, 0, 0, None))(kernel, planned, nodes, starts, MIXTURE))


@functools.cache
def exact_ends(kernel, cases, rows, lasts):
    """The truth: RK4's in 1000 rows, even in log-SNR."""
    fine = lambda last: (lambda schedule, n: dj.timetables.log_snr(schedule, n, t_min=last)[:-1], np.inf)
    names = [s for s, _ in cases for _ in rows]
    return ends_of(kernel, [case(kernel, SCHEDULES[s], fine(last), 1000, 999) for s, last in zip(names, lasts)])


RK4 = K.RK4()


def curved_errors(kernel, cases, rows=ROWS):
    """As :func:`errors`, for a mixture, whose flow is not linear."""
    runs = [case(kernel, SCHEDULES[s], GRIDS[g], n, max(rows)) for s, g in cases for n in rows]
    exact = exact_ends(RK4, tuple(cases), rows, tuple(float(run[1][0][-1]) for run in runs))
    return np.abs(ends_of(kernel, runs) - exact).max(1).reshape(len(cases), len(rows))


@pytest.mark.parametrize("name", ["heun", "2m", "3m", "unipc2", "unipc3", "rk4"])
def test_order_on_a_flow_that_is_not_linear(name):
    """UniPC's first row, of first order and then corrected, leaves an error of order 3: it shows where x0 bends at the top."""
    kernel, expected = SOLVERS[name]
    rows = (40, 160) if name == "rk4" else ROWS  # at 320 it is as near the truth as the truth
    for where, slope in zip(CURVED, order(kernel, CURVED, rows, curved_errors)):
        assert 0.85 * min(expected, 3 if name == "unipc3" else expected) < slope < 1.25 * expected, (where, slope)


@pytree
class KarrasWeight(dj.kernels.Heun):
    """w = e^h / 2, unbounded."""

    def coefficients(self, table):
        move = super().coefficients(table)
        decay = np.sqrt(dj.process.snr_ratio(self.schedule, table.t, table.s))
        w = np.where(decay > 0, 0.5 / np.where(decay > 0, decay, 1), 0.5)
        return replace(move, correction=np.where(table.s == 0, 0, move.alpha_s * (1 - decay) * w))


@pytest.mark.parametrize("kernel", [dj.kernels.Heun(), dj.kernels.DPMSolverPP2M()], ids=["heun", "2m"])
def test_teeth(kernel):
    """Karras et al.'s weight and the published 2M lose it: from 320 rows of the house grid on their first row's error is all
    that is left, and on the uniform grid they are five times worse."""
    published = KarrasWeight() if isinstance(kernel, dj.kernels.Heun) else dj.kernels.DPMSolverPP2M(deep=0.0)
    house, uniform = [("cosine", "log_snr")], [("cosine", "uniform")]
    assert abs(order(kernel, house, (320, 640))[0] - 2) < 0.1
    assert order(published, house, (320, 640))[0] < 1
    assert errors(published, uniform)[0, 0] > 5 * errors(kernel, uniform)[0, 0]


def published_unipc(model, x, alpha, sigma, order):
    """Zhao et al. 2023, algorithms 5 to 8 with B(h) = e^h - 1, through the given levels: their linear systems, solved."""
    lam, m, base = np.log(alpha / sigma), [], None

    def system(n, p, h):
        """(r, R, b) of p points before and at level n, and the step's end."""
        r = np.append([(lam[n - k] - lam[n]) / h for k in range(1, p)], 1.0)
        phi, factorial, R, b = np.expm1(-h) / -h - 1, 1, [], []
        for i in range(1, p + 1):
            R.append(r ** (i - 1))
            b.append(phi * factorial / np.expm1(-h))
            factorial *= i + 1
            phi = phi / -h - 1 / factorial
        return r, np.array(R), np.array(b)

    def move(n, weights, r, x, last=0.0):
        h = lam[n + 1] - lam[n]
        slopes = sum((w * (m[n - k] - m[n]) / r[k - 1] for k, w in enumerate(weights, 1)), last)
        return sigma[n + 1] / sigma[n] * x - alpha[n + 1] * np.expm1(-h) * (m[n] + slopes)

    for n in range(len(alpha) - 1):
        m.append(model(x, alpha[n], sigma[n]))
        if n:
            p = min(order, n)
            r, R, b = system(n - 1, p, lam[n] - lam[n - 1])
            rho = np.array([0.5]) if p == 1 else np.linalg.solve(R, b)
            x = move(n - 1, rho[:-1], r, base, rho[-1] * (m[n] - m[n - 1]))
        base, p = x, min(order, n + 1)
        r, R, b = system(n, p, lam[n + 1] - lam[n])
        rho = np.array([0.5]) if p == 2 else np.linalg.solve(R[:-1, :-1], b[:-1])
        x = move(n, rho, r, x)
    return x


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_is_the_published_one(order):
    table = dj.timetables.log_snr(SCHEDULES["VP"], 12)[:-1]
    kernel = K.UniPC(order=order, deep=0.0)
    planned, nodes, start, _ = case(kernel, SCHEDULES["VP"], (lambda s, n: table, np.inf), 11, 11)
    with jax.enable_x64(True):
        expected = published_unipc(lambda x, a, s: np.asarray(MIXTURE.denoise(x, a, s)[0]), start, *nodes[1:], order)
        got = walk(kernel, planned, nodes, start, MIXTURE)
    np.testing.assert_allclose(got, expected, rtol=1e-7)
