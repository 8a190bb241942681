"""diffjax.cli.tasks and diffjax.batch: named measurements, restored with any operator; the ablation's filled-up timetables."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import ndimage

import diffjax as dj
from diffjax import batch, zoo
from diffjax import registry as methods
from diffjax.cli import errors, tasks
from diffjax.method import as_method
from diffjax.operators import masks
from experiments import ablation


@pytest.fixture(scope="module")
def truth():
    return np.asarray(zoo.bundled.images("fashion")[0][:3])


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deblur", "motion", "sr4-mean", "box", "sr4"])
def test_the_noise_is_as_strong_as_said_and_an_image_has_its_own(name, truth):
    ys, operators = tasks.measure(name, truth, 0.1, seed=5)
    alone, _ = tasks.measure(name, truth[:1], 0.1, seed=5)
    np.testing.assert_array_equal(ys[:1], alone)  # whatever stands beside it
    clean, _ = tasks.measure(name, truth, 0.0, seed=5)
    z = (ys - clean) / 0.1
    hidden = np.stack([np.broadcast_to(A.mask == 0, z[0].shape) for A in operators]) if name == "box" else z == None  # noqa: E711
    assert (z[hidden] == 0).all()
    n = (~hidden).sum()
    assert z[~hidden].std() == pytest.approx(1, abs=4 / np.sqrt(2 * n)) and abs(z[~hidden].mean()) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(z[0].ravel(), z[1].ravel())[0, 1]) < 4 / np.sqrt(z[0].size)  # not the same noise twice
    fits = [tasks.misfit(A, x, y, 0.1) for A, x, y in zip(operators, truth, ys)]
    np.testing.assert_allclose(fits, 1, atol=4 / np.sqrt(2 * z[0].size))


def test_blurs_are_convolutions_with_wrapped_borders(truth):
    i = np.arange(-6, 7)
    gauss = np.exp(-0.5 * (i / 1.5) ** 2)
    ys, _ = tasks.measure("deblur", truth)
    expected = ndimage.convolve(truth[0, ..., 0].astype(float), np.outer(gauss, gauss) / gauss.sum() ** 2, mode="wrap")
    np.testing.assert_allclose(ys[0, ..., 0], expected, atol=1e-5)
    ys, operators = tasks.measure("motion", truth, seed=2)
    kernels = [np.asarray(A.kernel) for A in operators]
    np.testing.assert_array_equal(kernels[1], dj.operators.motion_kernel(13, 0.5, 3))  # seed + number
    expected = ndimage.convolve(truth[1, ..., 0].astype(float), kernels[1], mode="wrap")
    np.testing.assert_allclose(ys[1, ..., 0], expected, atol=1e-5)


def test_smaller_images_and_masks(truth):
    ys, _ = tasks.measure("sr4-mean", truth)
    np.testing.assert_allclose(ys[0], truth[0].reshape(8, 4, 8, 4, 1).mean((1, 3)), atol=1e-6)
    assert tasks.measure("sr4", truth)[0].shape == (3, 8, 8, 1)
    ys, operators = tasks.measure("thick", truth, seed=7)  # a mask's other name
    mask = masks.wide((32, 32), 8)
    np.testing.assert_array_equal(operators[1].mask[..., 0], mask)
    np.testing.assert_array_equal(ys[1, ..., 0], np.where(mask > 0, truth[1, ..., 0], 0))


def test_a_size_it_cannot_take_and_an_unknown_name(truth):
    with pytest.raises(errors.UserError, match="did you mean 'deblur'"):
        tasks.measure("debblur", truth)
    with pytest.raises(errors.UserError, match="factor 4 does not divide"):
        tasks.measure("sr4", truth[:, :30, :30])


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_takes_the_tasks_it_claims(name, prior, truth):
    """And no other: what it does not claim, the library refuses."""
    entry = methods.METHODS[name]
    for task in ("half", "deblur", "sr4"):
        ys, operators = tasks.measure(task, truth[:1])
        denoise = prior.denoiser(None, 1.0, clip=entry.clip)

        def build():
            method, kernel, table = entry.build(denoise, dj.Measurement(ys[0], operators[0]), 5)
            as_method(method).check(kernel, table)

        if methods.kind(operators[0]) in entry.tasks:
            build()
        else:
            with pytest.raises(ValueError, match="Mask"):
                build()


# --- restored ---------------------------------------------------------------------------------------------------------


def test_restored_from_block_means_alone_as_in_a_batch(prior, truth):
    """DDRM without noise: the block means of the result are those of y. And one program serves other measurements."""
    entry, programs = methods.METHODS["ddrm"], batch.Programs()
    ys, operators = tasks.measure("sr4-mean", truth)
    options = dict(steps=3, seed=4, programs=programs, devices=1)
    last = batch.restore(prior, entry, ys[2:], operators[2:], batch=1, numbers=[2], **options)
    a = batch.restore(prior, entry, ys, operators, batch=3, **options)
    np.testing.assert_allclose(a.x[:, 0].reshape(3, 8, 4, 8, 4, 1).mean((2, 4)), ys, atol=1e-4)
    b = batch.restore(prior, entry, ys, operators[0], batch=1, **options)  # one operator for all
    np.testing.assert_allclose(a.x, b.x, atol=1e-4)
    np.testing.assert_allclose(a.x[2:], last.x, atol=1e-4)
    assert a.each_calls.shape == (3, 1) and a.network_calls == a.each_calls.mean()
    assert len(programs) == 2  # batch 3 and batch 1: block means have no arrays that one image could have of its own
    other = batch.restore(prior, entry, ys[::-1], operators, batch=3, **options)
    assert len(programs) == 2 and other.seconds_compile < a.seconds_compile / 5
    np.testing.assert_allclose(other.x[:, 0].reshape(3, 8, 4, 8, 4, 1).mean((2, 4)), ys[::-1], atol=1e-4)


def test_each_image_has_its_own_kernel(prior, truth):
    """DPIR, deterministic: the third image alone, with the third kernel, is the third of the batch."""
    ys, operators = tasks.measure("motion", truth, 0.1)
    options = dict(noise_std=0.1, steps=2, batch=1, programs=batch.Programs(), devices=1)
    together = batch.restore(prior, methods.METHODS["dpir"], ys, operators, **options)
    alone = batch.restore(prior, methods.METHODS["dpir"], ys[2:], operators[2:], **options)
    wrong = batch.restore(prior, methods.METHODS["dpir"], ys[2:], operators[1:2], **options)
    np.testing.assert_allclose(together.x[2], alone.x[0], atol=1e-4)
    assert np.abs(alone.x - wrong.x).max() > 1e-2


def test_a_method_that_is_no_walk(prior, truth):
    """``Entry.whole`` makes the result and counts the calls; optimising the start is one."""
    ys, operators = tasks.measure("sr4-mean", truth)

    def whole(key, denoise, measurement, steps, shape, lr=1.0):
        return lr * measurement.A.pinv(measurement.y), 7 * steps

    of = methods.METHODS["optimise-start"]
    done = batch.restore(
        prior, dataclasses.replace(of, whole=whole), ys, operators, steps=2, sweep={"lr": [1.0, 0.5]}, devices=1
    )
    assert done.network_calls == [14, 14]
    np.testing.assert_allclose(done.x[1, :, 0], 0.5 * ys.repeat(4, 1).repeat(4, 2), atol=1e-6)
    given = prior.denoiser(None, 1.0, clip=False), dj.Measurement(ys[0], operators[0]), 2, prior.shape
    calls = []

    def run(key):
        x, number = of.whole(key, *given, lr=0.1, iterations=3)
        calls.append(number)
        return x

    assert jax.eval_shape(run, jax.random.key(0)).shape == prior.shape and calls == [2 * (3 + 1)]


def test_operators_of_two_kinds_at_once(prior, truth):
    ys, operators = tasks.measure("deblur", truth)
    with pytest.raises(ValueError, match="different kinds"):
        batch.restore(prior, methods.METHODS["ddrm"], ys, [*operators[:2], dj.operators.Mask(np.ones((32, 32, 1)))], devices=1)


# --- the ablation -----------------------------------------------------------------------------------------------------


def test_rows_that_fill_up_a_timetable_move_nothing(prior, truth):
    """A walk of 3 steps as the whole of its program, and beside one of 5: the same, from the same start."""
    ys, operators = tasks.measure("deblur", truth[:1], 0.1)
    short, long = (dj.timetables.diffpir(prior.schedule, n) for n in (3, 5))
    assert len(ablation.padded(short, 5)) == 5 and ablation.padded(short, 5).t[0] == short.t[0]
    options = dict(noise_std=0.1, programs=batch.Programs(), devices=1)

    def run(tables):  # zeta 0: after the start nothing is drawn
        sweep = {"table": tables, "zeta": [0.0] * len(tables)}
        return batch.restore(prior, ablation.entry(False), ys, operators, sweep=sweep, **options).x

    both = run([ablation.padded(short, 5), long])
    np.testing.assert_allclose(both[0], run([short])[0], atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 1e-2


def test_a_curve_and_its_picture(prior, truth, monkeypatch, tmp_path):
    from experiments import tune

    monkeypatch.setattr(zoo, "load", lambda name: prior)
    monkeypatch.setattr(tune, "validation", lambda prior, data, count: truth[:count])
    monkeypatch.setattr(ablation, "QUICK", {"t_start": (1000, 400)})
    assert ablation.main(["--quick", "--count", "2", "--out", str(tmp_path)]) == 0
    from experiments import record

    rows = record.read("ablation_deblur_tiny", tmp_path)["rows"]
    assert [(r["varied"], r["value"]) for r in rows] == [("t_start", 1000), ("t_start", 400)]
    assert rows[0]["network calls"] == 6 > rows[1]["network calls"]
    assert all(np.isfinite(r["PSNR"]) for r in rows) and rows[0]["PSNR"] != rows[1]["PSNR"]
    assert (tmp_path / "ablation_deblur_tiny.png").stat().st_size > 1000
