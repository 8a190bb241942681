"""CoPaint beyond the recorded runs: its search, its knobs, and the optimisation of the start."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_prior
from cases import MASK, SCHEDULE, SHAPE, arguments, gaussian
from PIL import Image

import diffjax as dj
from diffjax import zoo
from diffjax.cli import restore
from diffjax.operators import masks

TABLE = dj.timetables.log_snr(SCHEDULE, 6)
KERNEL = dj.kernels.DDIM(SCHEDULE)


def method(network=gaussian, **kwargs):
    y = kwargs.pop("y", arguments()[1])
    denoise = dj.denoisers.from_x0(network, arguments()[0], SCHEDULE)
    return dj.methods.CoPaint(denoise, dj.Measurement(y, dj.operators.Mask(MASK)), **kwargs)


@functools.cache
def compiled(**static):
    return jax.jit(lambda y, lr: dj.sample(jax.random.key(0), method(y=y, lr=lr, **static), TABLE, SHAPE, kernel=KERNEL))


def run(y=None, lr=0.02, **static):
    return compiled(**static)(arguments()[1] if y is None else y, lr)


def test_a_step_never_raises_the_objective_and_the_cap_takes_none():
    """Far too large rates. After 40 reductions 1e6 is still 133: at low noise, where x0 follows x one to one, such a step ends
    at the bounds, farther from y = 0 than where it began, so the cap is reached and x must stay; at high noise x0 hardly
    moves and steps of this length lower the objective."""
    x_t = 0.5 * jax.random.normal(jax.random.key(1), SHAPE)
    m = method(lr=1e6, smart=False, reg=0.0, y=jnp.zeros(SHAPE))
    rows = jax.tree.map(jnp.float32, dj.replace(TABLE.rows(), m=m.plan(KERNEL, TABLE)))

    def one(row):
        x, _, reductions = m.optimise(x_t, row)
        return x, reductions, m._objective(x_t, x_t, row)[0], m._objective(x, x_t, row)[0]

    x, reductions, before, after = jax.tree.map(np.asarray, jax.jit(lambda: jax.lax.map(one, rows))())
    stuck = (reductions > m.max_reductions).all(1)
    assert 0 < stuck.sum() < len(TABLE) and (reductions.sum(1) > 0).all()
    np.testing.assert_array_equal(x[stuck], np.broadcast_to(x_t, x[stuck].shape))
    assert (after <= before * (1 + 1e-6)).all() and (after[~stuck] < 0.9 * before[~stuck]).all()


def test_the_search_rescues_rates_that_alone_diverge():
    known = MASK > 0
    distance = lambda **kwargs: np.abs(run(exact=False, **kwargs).x - arguments()[1])[known].max()
    assert distance(lr=3.0) < 0.1 < 0.2 < min(distance(lr=1e-9), distance(lr=3.0, adaptive=False))


def test_a_network_that_breaks_ends_the_search_instead_of_hanging():
    def broken(params, x, i):
        x0, mix = gaussian(params, x, i)
        return jnp.where(i < 50, jnp.nan, x0), mix

    result = run(network=broken, max_reductions=5)
    assert not result.info.finite[-1] and int(result.info.rows["reductions"].max()) <= 6


def test_known_pixels_are_exact_unless_asked_otherwise():
    y = np.clip(arguments()[1], -1, 1)
    np.testing.assert_array_equal(np.asarray(run().x)[MASK > 0], y[MASK > 0])
    assert np.abs(np.asarray(run(exact=False).x) - y)[MASK > 0].max() > 1e-4


def test_hidden_pixels_of_y_are_never_looked_at():
    y = arguments()[1]
    junk = jnp.where(MASK > 0, y, 0.7)
    np.testing.assert_array_equal(run().x, run(y=junk).x)


def test_gradients_through_the_whole_restoration():
    """With travel, noise, and the search on and shortening steps. Its rate is piecewise constant in y and the parameters and
    taken as a constant by the gradient, which is the derivative wherever no count of reductions switches: such a point is
    looked at, and that it is one is checked."""
    table = dj.timetables.travel(dj.timetables.log_snr(SCHEDULE, 5), length=2, times=2, before_jump=True)
    rng = np.random.default_rng(0)

    def network(params, x, i):
        W, V, b = params
        x0 = 1.2 * jnp.tanh(V @ jnp.tanh(W @ x.ravel() + b * (i / 100)))  # beyond the bounds now and then
        return x0.reshape(x.shape), None

    with jax.enable_x64(True):
        n = int(np.prod(SHAPE))
        params = (rng.normal(0, 0.2, (24, n)), rng.normal(0, 0.2, (n, 24)), rng.normal(0, 1, 24))
        at = (jax.tree.map(jnp.asarray, params), jnp.asarray(rng.uniform(-0.8, 0.8, SHAPE)))
        weights = jnp.asarray(rng.standard_normal(SHAPE))

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(at):
            denoise = dj.denoisers.from_x0(network, at[0], SCHEDULE)
            m = dj.methods.CoPaint(denoise, dj.Measurement(at[1], dj.operators.Mask(jnp.asarray(MASK))), lr=3.0)
            kernel = dj.kernels.DDIM(SCHEDULE, eta=0.3)
            result = dj.sample(jax.random.key(1), m, table, SHAPE, kernel=kernel, dtype=jnp.float64)
            return (weights * result.x).sum(), result.info.rows["reductions"]

        (_, reductions), gradient = loss(at)
        assert len(np.unique(reductions)) > 2 and reductions.max() > 3
        zero, h = jax.tree.map(jnp.zeros_like, at), 1e-6
        for which in ("y", "parameters"):
            direction = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), at)
            direction = (zero[0], direction[1]) if which == "y" else (direction[0], zero[1])
            sides = [loss(jax.tree.map(lambda a, d: a + s * h * d, at, direction))[0] for s in (1, -1)]
            for _, there in sides:
                np.testing.assert_array_equal(there, reductions)
            numeric = (sides[0][0] - sides[1][0]) / (2 * h)
            exact = sum((g * d).sum() for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
            assert abs(exact) > 1e-2
            np.testing.assert_allclose(numeric, exact, rtol=1e-5)


def test_candidates_keep_the_start_with_the_lowest_loss():
    key, candidates = jax.random.key(3), 4
    m = method(candidates=candidates)
    chosen = jax.jit(lambda key: dj.sample(key, m, TABLE, SHAPE, kernel=KERNEL))(key)
    noise = dj.draws(key, m, TABLE, SHAPE, kernel=KERNEL)
    assert noise.start.shape == (candidates, *SHAPE)
    one = jax.jit(jax.vmap(lambda x: dj.sample(key, method(), TABLE, x, kernel=KERNEL)))(noise.start)
    losses = np.asarray(one.info.rows["loss"])[:, 0]  # after optimising at the first level
    np.testing.assert_allclose(chosen.x, one.x[np.argmin(losses)], atol=1e-5)
    assert np.abs(chosen.x - one.x[np.argmax(losses)]).max() > 1e-2


@pytest.mark.parametrize(
    "name, rows, calls", [("copaint-fast", 99, 297), ("copaint", 249, 1245), ("copaint-tt", 489 + 24, 2565)]
)
def test_published_tables_have_the_papers_calls(name, rows, calls):
    vp = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    denoise = dj.denoisers.from_eps(lambda x, i: x, None, vp)
    measurement = dj.Measurement(jnp.zeros(SHAPE), dj.operators.Mask(jnp.ones(SHAPE)))
    method, _, table = dj.methods.copaint.published(denoise, measurement, variant=name)
    assert len(table) == rows and rows * (1 + 2 * method.iterations) == calls  # with one trial per gradient step


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: method(iterations=0), "iterations 0"),
        (lambda: dj.methods.copaint.published(None, None, variant="copaint-t"), "did you mean"),
        (lambda: dj.sample(jax.random.key(0), method(), TABLE, SHAPE, kernel=dj.kernels.DDPM(SCHEDULE)), "use kernels.DDIM"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_optimise_start_finds_the_exact_minimum():
    """Gaussian prior: G is affine, x0 = a + B x_T, so the minimum solves a linear system."""
    with jax.enable_x64(True):
        params, y = arguments(jnp.float64)
        denoise = dj.denoisers.from_x0(gaussian, params, SCHEDULE)
        measurement = dj.Measurement(y, dj.operators.Mask(MASK.astype(np.float64)))
        table, reg, n = dj.timetables.log_snr(SCHEDULE, 4), 0.05, int(np.prod(SHAPE))
        found = jax.jit(
            lambda: dj.methods.optimise_start(
                jax.random.key(0), denoise, measurement, table, jnp.zeros(SHAPE), reg=reg, iterations=600, lr=0.02
            )
        )()
        walk = lambda x: dj.sample(jax.random.key(0), denoise, table, x.reshape(SHAPE), kernel=KERNEL).x.ravel()
        a, B = walk(jnp.zeros(n)), jax.jacfwd(walk)(jnp.zeros(n))
        m = MASK.ravel().astype(np.float64)
        exact = np.linalg.solve(B.T @ np.diag(m) @ B + reg * np.eye(n), B.T @ (m * (y.ravel() - a)))
        np.testing.assert_allclose(found.start.ravel(), exact, atol=1e-3)
        assert found.loss[-1] < found.loss[0]


# --- the programs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    return tiny_prior.write(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.mark.parametrize("name, steps, rows, iterations", [
    ("copaint-fast", 6, 5, 1),
    ("copaint", 4, 3, 2),
    ("copaint-tt", 12, 11 + 1 + 10, 2),  # one jump point, 0: once more before it, and ten steps again
])  # fmt: skip
def test_restore(name, steps, rows, iterations, prior_folder, tmp_path):
    out = tmp_path / "out"
    argv = ["--method", name, "--steps", str(steps), "--prior", str(prior_folder), "--limit", "1", "--samples", "1",
            "--devices", "1", "--out", str(out)]  # fmt: skip
    assert restore.main(argv) == 0
    report = json.loads((out / "tiny" / "metrics.json").read_text())
    assert (report["method"], report["kernel_steps"]) == (name, rows)
    # every gradient step has at least one trial; were it the bound, each would have 41
    least = rows * (1 + 2 * iterations)
    assert isinstance(report["network_calls"], int) and least <= report["network_calls"] < 5 * least
    truth = zoo.bundled.images("fashion")[0][0, ..., 0]
    restored = np.asarray(Image.open(out / "tiny" / "images" / "fashion-00.png"), np.float32)
    known = masks.make("half", (32, 32), 0) == 1
    np.testing.assert_allclose(restored[known], ((truth + 1) * 127.5)[known], atol=0.51)


def test_restore_knows_the_three(capsys):
    assert restore.main(["--list"]) == 0
    listed = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| copaint")]
    assert listed == ["copaint-fast", "copaint", "copaint-tt"]


def test_steps_out_of_range_are_one_line(prior_folder, tmp_path, capsys):
    for name, steps, most in (("copaint-fast", "251", 250), ("copaint", "1", 1000)):
        argv = ["--method", name, "--steps", steps, "--prior", str(prior_folder), "--out", str(tmp_path / "out")]
        assert restore.main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"steps of {name} {steps}" in error and f"from 2 to {most}" in error
    assert not list(tmp_path.iterdir())
