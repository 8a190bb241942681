"""A volume as one object: networks of cuts on volumes, tiles that are exact, layers in three dimensions, and the program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import cli, volumes, zoo
from diffjax.nets import LocalUNet
from diffjax.volumes import Coarse, Enlarger, How, superresolve
from diffjax.volumes.enlarger import InTiles
from diffjax.zoo.volumes import CARD, WEIGHTS, save_mri_sr

nibabel = pytest.importorskip("nibabel")
rng = np.random.default_rng(0)
SCHEDULE = dj.schedules.discrete(np.linspace(1e-4, 0.12, 100))
QUICK = {"xla_backend_optimization_level": 0}


def random_params(net, shape, seed=0):
    """No weight is zero: a new network gives nothing at all."""
    x = jnp.zeros(shape)
    params = jax.jit(net.init, compiler_options=QUICK)(jax.random.key(0), x, jnp.zeros(()), x)
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [a + 0.1 * random.normal(size=a.shape).astype(np.float32) for a in leaves])


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local():
    net = LocalUNet(width=8)
    return net, random_params(net, (8, 8, 1))


def test_reach_is_how_far_the_local_network_looks(local):
    """By the gradient of one pixel: none beyond the reach, and some within half of it."""
    net, params = local
    n = 2 * net.reach + 24
    at = n // 2
    x = jnp.asarray(rng.normal(size=(n, 16, 1)), jnp.float32)
    f = lambda x, cond: net.apply(params, x, 0.5, cond)[at, 8, 0]
    for of in jax.jit(jax.grad(f, (0, 1)), compiler_options=QUICK)(x, x):
        rows = np.abs(np.asarray(of)).max((1, 2))
        assert rows[: at - net.reach].max(initial=0) == 0 and rows[at + net.reach + 1 :].max(initial=0) == 0
        assert (np.flatnonzero(rows)[[0, -1]] - at)[1] > net.reach // 2


def test_tiles_that_overlap_by_the_reach_give_what_the_whole_gives(local):
    """So there is no grid of tiles. Group norms could not do this."""
    net, params = local
    x, cond = jnp.asarray(rng.normal(size=(2, 148, 16, 1)), jnp.float32)
    apply = lambda net: jax.jit(lambda x, cond: net.apply(params, x, 0.7, cond), compiler_options=QUICK)(x, cond)
    whole = apply(net)
    tiles = InTiles(net, 2 * net.reach + 28, 2 * net.reach + 8)
    assert len(tiles._along(148, tiles.size, 4)[0]) == 3
    np.testing.assert_allclose(apply(tiles), whole, atol=1e-4)
    np.testing.assert_array_equal(apply(InTiles(net, 148)), whole)
    with pytest.raises(ValueError, match="take larger tiles"):
        InTiles(net, 16, 16).apply(params, x, 0.7, cond)


def test_weights_of_tiles_sum_to_one(local):
    for n, size, overlap in ((100, 32, 8), (64, 64, 0), (68, 64, 48), (300, 96, 48)):
        starts, weights = InTiles(local[0], size, overlap)._along(n, min(size, n), 4)
        total = np.zeros(n)
        for start, w in zip(starts, weights):
            total[start : start + len(w)] += w
        np.testing.assert_allclose(total, 1)
        assert (starts % 4 == 0).all() and (np.diff(starts) <= size - overlap).all()


def test_layers_of_three_dimensions_make_a_tiny_prior_of_volumes():
    """Nothing on the way is two-dimensional by name: the network, its layers, a kernel, DiffPIR, thick slices, gradients."""
    net, shape = LocalUNet(width=4, spatial=3), (4, 8, 4, 1)
    params = random_params(net, shape)
    low = jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    table, A = dj.timetables.log_snr(SCHEDULE, 2), dj.operators.SliceAverage(2)

    def restored(y, low):
        denoise = dj.denoisers.from_eps(net.apply, params, SCHEDULE, cond=low, time=dj.denoisers.NoiseLevel())
        method = dj.methods.DiffPIR(denoise, dj.Measurement(y, A, 0.02), lam=1.0)
        return dj.sample(jax.random.key(1), method, table, shape).x

    def all_of_it(y, low):
        x, pull = jax.vjp(restored, y, low)
        return x, pull(jnp.ones_like(x))

    y = A(jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32))
    x, gradients = jax.jit(all_of_it, compiler_options=QUICK)(y, low)
    assert x.shape == shape and np.abs(A(x) - y).max() < 0.05
    assert all(np.isfinite(g).all() and np.abs(g).max() > 1e-4 for g in gradients)
    with pytest.raises(ValueError, match="must be multiples of 4"):
        net.apply(params, jnp.zeros((8, 10, 8, 1)), 0.3, jnp.zeros((8, 10, 8, 1)))
    with pytest.raises(ValueError, match="enlarge it to the same sides"):
        net.apply(params, low, 0.3, low[:, :4])


# --- slices of one volume ---------------------------------------------------------------------------------------------


def told(x, i, cond):
    """A "network" whose noise is known: it leans on its condition and on the place within the cut, so that axes differ."""
    return 0.3 * x - 0.5 * cond + 0.01 * jnp.arange(x.shape[0])[:, None, None]


def test_slicewise_is_the_stack_of_cuts_and_averages_stacks():
    inner = dj.denoisers.from_eps(told, None, SCHEDULE)
    x, cond = jnp.asarray(rng.normal(size=(2, 3, 4, 5, 1)), jnp.float32)
    t = jnp.float32(40)
    by_hand = []
    for order in ((0, 1, 2), (2, 0, 1)):
        cuts, conds = (np.transpose(a, (*order, 3)) for a in (x, cond))
        made = np.stack([dj.denoisers.with_cond(inner, jnp.asarray(c))(jnp.asarray(u), t).x0 for u, c in zip(cuts, conds)])
        by_hand.append(np.transpose(made, (*np.argsort(order), 3)))
    for at_once in (None, 2):
        for orders, expected in ((((0, 1, 2),), by_hand[0]), (((0, 1, 2), (2, 0, 1)), (by_hand[0] + by_hand[1]) / 2)):
            p = dj.denoisers.Slicewise(inner, cond, orders, at_once)(x, t)
            np.testing.assert_allclose(p.x0, expected, atol=1e-4)
            np.testing.assert_allclose(SCHEDULE.alpha(40.0) * p.x0 + SCHEDULE.sigma(40.0) * p.eps, x, atol=1e-4)
    with pytest.raises(ValueError, match="permutations of"):
        dj.denoisers.Slicewise(inner, cond, ((0, 1, 1),))
    with pytest.raises(ValueError, match="give \\(D, H, W, C\\)"):
        dj.denoisers.Slicewise(inner, cond)(x[0], t)


def smooth(shape, seed=0):
    """A volume of a few slow waves."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    waves = [np.cos(2 * np.pi * sum(f * g for f, g in zip(random.uniform(-1.5, 1.5, 3), grid)) + random.uniform(0, 6))
             for _ in range(5)]  # fmt: skip
    return (np.mean(waves, 0)).astype(np.float32)


def tiny(seed=1, K=25.0):
    net = LocalUNet(width=8)
    return Enlarger(random_params(net, (8, 8, 1), seed), net, SCHEDULE, K)


def test_a_data_step_of_the_volume_ties_its_slices_to_the_measured_ones():
    """Thick slices of the result are the measured ones, and neighbouring cuts, drawn one by one, differ less."""
    truth = smooth((12, 12, 16))
    coarse = Coarse("through-plane", 4, 2)
    measured, key, network = coarse(truth), jax.random.key(0), tiny()
    roughness = lambda x: np.abs(np.diff(x, axis=0)).mean() / np.abs(np.diff(truth, axis=0)).mean()
    plain = next(superresolve(network, coarse, measured, key, How(steps=2, orientations=1)))
    held = next(superresolve(network, coarse, measured, key, How(steps=2, noise_std=0.01)))
    assert plain.shape == held.shape == truth.shape
    assert np.abs(coarse(held) - measured).max() < 0.05 < np.abs(coarse(plain) - measured).max()
    assert roughness(held) < roughness(plain)


@pytest.mark.parametrize(
    "plane,shape,axis,how", [("through-plane", (9, 7, 3), 0, How(steps=1)), ("in-plane", (5, 6, 1), 2, How(100, 1, eta=1.0))]
)
def test_any_sides_and_axes_and_draws_are_their_own(plane, shape, axis, how):
    """Sides that the network does not divide are padded and cropped; draw n does not depend on how many are made."""
    shape = shape if axis == 2 else shape[::-1]
    measured = smooth(shape, 3)
    coarse, network = Coarse(plane, 2, axis), tiny()
    draws = list(superresolve(network, coarse, measured, jax.random.key(3), how, samples=2))
    assert [d.shape for d in draws] == [coarse.fine_shape(shape)] * 2 and np.abs(draws[0] - draws[1]).max() > 1e-3


def test_a_sweep_over_starts_and_steps_is_one_program_and_each_the_walk_by_itself():
    coarse, network, key = Coarse("through-plane", 2, 0), tiny(K=None), jax.random.key(2)
    measured = smooth((4, 8, 8), 4)
    made, compiled = {}, set()
    for start, steps in ((25, 3), (10, 1)):
        made[start] = next(superresolve(network, coarse, measured, key, How(start, steps, 1, eta=1.0)))
        compiled.add(dj.run._cache_size())
    assert len(compiled) == 1
    low = jnp.asarray(coarse.enlarge(measured)[..., None])
    method = dj.methods.LateStart(network.denoiser(low, coarse.plane, 1), low)
    table = dj.timetables.from_times([10.0, 0.0], SCHEDULE)
    alone = dj.sample(jax.random.fold_in(key, 0), method, table, low.shape, kernel=dj.kernels.DDIM(eta=1.0)).x
    np.testing.assert_allclose(made[10], alone[..., 0], atol=2e-4)


def test_a_network_that_takes_off_the_noise_alone_gives_the_interpolated_volume():
    """Its noise is that of the start, x - alpha low over sigma: so it ends at the interpolated volume, bright voxels too."""

    class Right:
        multiple = 4

        def apply(self, params, x, level, cond):
            level = jnp.asarray(level).astype(x.dtype)
            return (x - level * cond) / jnp.sqrt(1 - level**2)

    measured = 1.3 * smooth((8, 8, 4), 5)  # beyond [-1, 1]
    measured[2, 2, 2] = 2.5
    coarse = Coarse("through-plane", 2, 2)
    network = Enlarger({}, Right(), SCHEDULE, 25.0)
    x = next(superresolve(network, coarse, measured, jax.random.key(0), How(steps=3)))
    np.testing.assert_allclose(x, coarse.enlarge(np.clip(measured, -1, 1)).clip(-1, 1) + coarse.enlarge(measured)
                               - coarse.enlarge(np.clip(measured, -1, 1)), atol=2e-3)  # fmt: skip
    assert x.max() > 1.5


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    net = LocalUNet(width=8)
    card = {"name": "tiny", "width": 8, "multipliers": [1, 2], "betas": [1e-4, 0.12], "T": 100, "K": 25}
    save_mri_sr(folder, random_params(net, (8, 8, 1)), card)
    return folder


def scan(path, shape=(12, 10, 5), spacing=(1.0, 1.0, 4.0), dtype=np.float32, data=None):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (5, -7, 11)
    data = 100 * smooth(shape) + 300 if data is None else data
    image = nibabel.Nifti1Image(data.astype(dtype), affine)
    image.to_filename(str(path))
    return path


def run(capsys, *words):
    code = cli.main(["superresolve", *map(str, words), "--no-cache", "--devices", "1"])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_superresolve_writes_a_volume_at_its_place(tmp_path, capsys, network):
    data = 100 * smooth((12, 10, 5)) + 300
    data[:2] = np.nan
    path = scan(tmp_path / "scan.nii.gz", data=data)
    out = tmp_path / "out"
    code, said, err = run(capsys, path, "--network", network, "--out", out, "--samples", 2, "--steps", 1)
    assert code == 0, err
    assert "through-plane x4 along z: 12x10x20" in said and "not finite" in said
    assert {p.name for p in out.iterdir() if p.name[0] != "."} == {"scan_x4.nii.gz", "scan_x4_spread.nii.gz", "cuts.png",
                                                                  "metrics.json"}  # fmt: skip
    fine, source = volumes.read(out / "scan_x4.nii.gz"), volumes.read(path)
    np.testing.assert_allclose(fine.affine, volumes.finer(source.affine, (2,), 4), atol=1e-5)
    assert fine.data.shape == (12, 10, 20) and np.isnan(fine.data[:2]).all() and np.isfinite(fine.data[2:]).all()
    assert nibabel.load(out / "scan_x4.nii.gz").get_data_dtype() == np.float32
    spread = volumes.read(out / "scan_x4_spread.nii.gz").data[2:]
    assert (spread >= 0).all() and spread.max() > 0
    report = json.loads((out / "metrics.json").read_text())
    assert report["spacing"] == [1, 1, 1] and report["network_calls"] == 2 * 1 * 2  # samples, steps, stacks of cuts


def test_superresolve_refuses_in_one_line(tmp_path, capsys, network):
    cube = scan(tmp_path / "cube.nii", spacing=(1, 1, 1))
    flat = scan(tmp_path / "flat.nii", shape=(12, 10, 1), spacing=(1, 1, 5))
    series = tmp_path / "4d.nii"
    nibabel.Nifti1Image(rng.normal(size=(8, 8, 4, 3)).astype(np.float32), np.diag([1, 1, 4, 1.0])).to_filename(str(series))
    even = scan(tmp_path / "even.nii", data=np.full((8, 8, 4), 7.0))
    rubbish = tmp_path / "rubbish.nii"
    rubbish.write_bytes(rng.bytes(999))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / CARD).write_text((network / CARD).read_text())
    (broken / WEIGHTS).write_bytes((network / WEIGHTS).read_bytes()[:-50])
    out = tmp_path / "out"
    for words, message in (
        ((cube,), "no thick slices: give --plane in-plane"),
        ((flat,), "one slice along axis 2"),
        ((series,), "choose frame 0 to 2"),
        ((even,), "is 7 everywhere"),
        ((rubbish,), "is no NIfTI volume"),
        ((tmp_path / "missing.nii",), "does not exist"),
        ((cube, "--factor", 3), "2 and 4"),
        ((cube, "--plane", "inplane"), "did you mean 'in-plane'"),
        ((cube, "--noise", 5), "--noise 5 is out of range"),
        ((cube, "--plane", "in-plane", "--orientations", 2), "about through-plane"),
        ((cube, "--plane", "in-plane", "--network", broken), "damaged"),
    ):
        given = words if "--network" in words else (*words, "--network", network)
        code, _, err = run(capsys, *given, "--out", out)
        assert code == 2 and message in err and err.count("\n") == 1, (words, err)
        assert not out.exists()


def test_superresolve_of_one_slice_in_plane(tmp_path, capsys, network):
    path = scan(tmp_path / "flat.nii", shape=(8, 6, 1), spacing=(1, 1, 5), dtype=np.int16)
    code, _, err = run(capsys, path, "--plane", "in-plane", "--factor", 2, "--network", network, "--out", tmp_path / "o",
                          "--samples", 1, "--steps", 1)  # fmt: skip
    assert code == 0, err
    fine = volumes.read(tmp_path / "o" / "flat_x2.nii.gz")
    assert fine.data.shape == (16, 12, 1)
    np.testing.assert_allclose(fine.spacing, (0.5, 0.5, 5), rtol=1e-5)
    assert not (tmp_path / "o" / "flat_x2_spread.nii.gz").exists()


def test_networks_that_do_not_fit_their_card_are_refused(tmp_path, network):
    card = json.loads((network / CARD).read_text())
    for change in ({"width": 16}, {"betas": "no"}, {"K": "x"}):
        folder = tmp_path / next(iter(change))
        folder.mkdir()
        (folder / CARD).write_text(json.dumps(card | change))
        (folder / WEIGHTS).write_bytes((network / WEIGHTS).read_bytes())
        with pytest.raises(ValueError, match=r"copy (it|both) again"):
            zoo.mri_sr(folder)
