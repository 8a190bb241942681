"""diffjax.batch: many images as one program, walked in pieces; what a compiled program is remembered by."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_prior

import diffjax as dj
from diffjax import batch, registry, zoo
from diffjax.sample import begin


@pytest.fixture(scope="module")
def problem():
    truth = np.asarray(zoo.bundled.images("fashion")[0][:2])
    masks = np.ones((2, 32, 32), np.float32)
    masks[:, :, 16:] = 0
    return truth, masks


# --- parts of a walk ---------------------------------------------------------------------------------------------------


def walks():
    vp = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    gauss = dj.priors.gaussian(np.zeros(4), 0.5).denoiser(vp)
    y = dj.Measurement(np.float32([0.3, 0, 0, 0]), dj.operators.Mask(np.float32([1, 0, 0, 0])))
    grid = dj.timetables.log_snr(vp, 7)
    jumps = dj.timetables.repaint(vp, jump=2, times=2, grid=grid)
    return {
        "history": (gauss, dj.kernels.DPMSolverPP2M(), grid),
        "jumps": (dj.methods.RePaint(gauss, y), dj.kernels.DDPM(), jumps),
    }


@pytest.mark.parametrize("name", ["history", "jumps"])
def test_parts_are_the_whole(name):
    """Whatever the parts are, and by one program: the numbers of the rows are arguments."""
    method, kernel, table = walks()[name]
    key, n, traces = jax.random.key(3), len(table), []
    whole = jax.jit(lambda key: dj.sample(key, method, table, (4,), kernel=kernel))(key)

    @jax.jit
    def walk(key, state, first, last):
        traces.append(None)
        return dj.sample(key, method, table, (4,), kernel=kernel, state=state, part=(first, last))

    start = jax.eval_shape(lambda key: begin(key, dj.plan(method, table, (4,), kernel=kernel)), key)
    found = []
    for edges in ([0, n], [0, 1, n], list(range(n + 1))):
        state = jax.tree.map(lambda a: jnp.full(a.shape, 7, a.dtype), start)  # row 0 begins anew, whatever it is handed
        finite = np.zeros(n, bool)
        for first, last in itertools.pairwise(edges):
            done = walk(key, state, first, last)
            state = done.state
            walked = np.asarray(done.info.finite)
            assert walked[first:last].all() and not walked[:first].any() and not walked[last:].any()
            finite |= walked
        assert finite.all()
        found.append(np.asarray(done.x))
    assert len(traces) == 1
    for x in found:
        np.testing.assert_array_equal(x, found[0])
        np.testing.assert_allclose(x, whole.x, rtol=1e-5, atol=1e-6)


# --- many images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddnm", "copaint-fast"])
def test_pieces_and_a_batch_are_each_image_alone(name, prior, problem, monkeypatch):
    """In pieces of one row as in one go, and as ``sample`` restores one image with its key."""
    truth, masks = problem
    entry = registry.METHODS[name]
    seen, options = [], dict(steps=4, seed=5, devices=2, programs=batch.Programs())
    once = batch.inpaint(prior, entry, truth, masks, **options)
    monkeypatch.setattr(batch, "PIECE", 0.0)
    pieces = batch.inpaint(prior, entry, truth, masks, progress=lambda *at: seen.append(at), **options)
    n = len(once.table)
    assert seen == [(k + 1, n) for k in range(n)] and len(options["programs"]) == 1
    np.testing.assert_array_equal(once.x, pieces.x)
    np.testing.assert_array_equal(once.each_calls, pieces.each_calls)

    y = np.where(masks[1][..., None] > 0, truth[1], 0)
    A = dj.operators.Mask(masks[1][..., None])
    method, kernel, table = entry.build(prior.denoiser(clip=entry.clip), dj.Measurement(y, A), 4)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 1), 0)
    alone = jax.jit(lambda key: dj.sample(key, method, table, prior.shape, kernel=kernel).x)(key)
    np.testing.assert_allclose(once.x[1, 0], alone, atol=2e-3 if name == "copaint-fast" else 1e-4)


def test_a_program_is_remembered_by_what_it_is_made_of(tmp_path, problem):
    """Two priors of one name whose weights have the same shapes share no program where heads or schedule differ, and share
    one where only weights and name do."""
    truth, masks = problem
    config = tiny_prior.CONFIG | {"attention": [1], "heads": 1}
    variants = {"one": config, "heads": config | {"heads": 2}, "schedule": config | {"schedule": "linear"}}
    priors = {name: zoo.load(tiny_prior.write(tmp_path / name, config=c)) for name, c in variants.items()}
    shapes = lambda p: [a.shape for a in jax.tree.leaves(p.params)]
    assert all(shapes(p) == shapes(priors["one"]) and p.name == "tiny" for p in priors.values())
    priors["weights"] = dj.replace(priors["one"], name="other", params=jax.tree.map(lambda a: 0.9 * a, priors["one"].params))
    programs, options = batch.Programs(), dict(steps=2, seed=1, devices=1, batch=1)
    entry = registry.METHODS["ddnm"]
    found = {n: batch.inpaint(p, entry, truth[:1], masks[:1], programs=programs, **options).x for n, p in priors.items()}
    assert len(programs) == 3
    for name, x in found.items():
        others = [y for n, y in found.items() if n != name]
        assert all(np.abs(x - y).max() > 1e-3 for y in others)
    p = priors["heads"]
    y = np.where(masks[0][..., None] > 0, truth[0], 0)
    method, kernel, table = entry.build(
        p.denoiser(clip=entry.clip), dj.Measurement(y, dj.operators.Mask(masks[0][..., None])), 2
    )
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 0)
    np.testing.assert_allclose(found["heads"][0, 0], dj.sample(key, method, table, p.shape, kernel=kernel).x, atol=1e-4)


def test_it_stops_where_it_is_not_finite(prior, problem, monkeypatch):
    """The walk ends with the piece in which it began, and the row is named."""
    truth, masks = problem
    broken = dj.replace(prior, params=jax.tree.map(lambda a: a * np.nan, prior.params))
    monkeypatch.setattr(batch, "PIECE", 0.0)
    seen = []
    with pytest.raises(ValueError, match="image 0 is not finite from row 0 of 4 on"):
        batch.inpaint(broken, registry.METHODS["ddnm"], truth[:1], masks[:1], steps=4, progress=lambda *at: seen.append(at))
    assert seen == []


def test_an_image_that_is_not_finite_is_told_and_the_others_are_done():
    """Three images with two samples, two at a time: the second sample of the first image fails, and it alone is lost."""
    from types import SimpleNamespace

    x = np.arange(6.0).reshape(3, 2, 1, 1)

    def call(k, keys, ys, A, state, first, last):
        finite = np.ones((2, 4), bool)
        finite[1, 2:] = k > 0
        return x[k], state, finite, np.ones(2, int)

    job = SimpleNamespace(ys=[0, 0, 0], names=["a", "b", "c"], entry=SimpleNamespace(whole=None), table=Table(4))
    mesh = dj.parallel.mesh(jax.devices()[:1])
    order = batch.Order(6, 2, 3, np.array([0, 0, 1, 1, 2, 2]), mesh, lambda chunk: (chunk, None, None, None))
    program = batch.Program(call, None, lambda leaves, ys, A, x: x)
    done, lost = {}, {}
    batch.run(job, order, program, None, lambda n, x, *_: done.update({n: x}), lost.__setitem__)
    assert list(done) == [1, 2] and list(lost) == [0] and "of a is not finite from row 2 of 4 on (t = 2)" in lost[0]
    np.testing.assert_array_equal(done[1], x[1])
    with pytest.raises(ValueError, match="restoration of a is not finite"):
        batch.run(job, order, program, None, lambda *_: None)


class Table:
    """As much of a timetable as a message needs."""

    def __init__(self, rows):
        self.t = np.arange(rows, 0, -1.0)

    def __len__(self):
        return len(self.t)
