"""The operators of the official codes (DDRM, DDNM, DPS, DiffPIR), recorded by their own code, against ours.

Refused: DDRM's and DDNM's ``Deblurring`` and ``Deblurring2D`` tile their singular values in one order and lay out their
spectrum in another, so that they are not the blur they are named after.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load

import diffjax as dj

O = dj.operators
REFUSED = {"Deblurring": "tiled singular values, lost tap", "Deblurring2D": "tiled singular values, lost tap"}


def images(x):
    """(B, C, H, W) -> (B, H, W, C)"""
    return np.moveaxis(x, 1, -1)


def spectral(run, meta):
    """(operator on (H, W, C), official y of one image -> ours, ours -> official) of a DDRM or DDNM class."""
    n, C = meta["img_dim"], meta["channels"]
    kind = meta["cls"]
    channels_first = lambda side: (
        lambda y: y.reshape(C, side, side).transpose(1, 2, 0),
        lambda y: y.transpose(2, 0, 1).reshape(-1),
    )
    if kind in ("Inpainting", "WalshHadamardCS"):
        if kind == "Inpainting":
            kept = run["op_kept_indices"]  # of interleaved pixels
        else:
            rows = run["op_perm"][: run["y"].shape[1] // C]
            kept = (rows[:, None] * C + np.arange(C)).reshape(-1)
        mask = np.isin(np.arange(n * n * C), kept).astype(float).reshape(n, n, C)
        A = O.Mask(mask) if kind == "Inpainting" else O.Hadamard(mask)
        return A, lambda y: np.bincount(kept, y, n * n * C).reshape(n, n, C), lambda y: y.reshape(-1)[kept]
    if kind == "SuperResolution":
        factor = round(1 / run["singulars"][0])
        return O.Downsample(factor), *channels_first(n // factor)
    if kind == "SRConv":
        factor = len(run["kernel1"]) // 4
        return O.Resize(factor), *channels_first(n // factor)
    if kind == "Colorization":
        weights = np.array([0.3333, 0.3334, 0.3333])
        return O.Grey(weights), lambda y: y.reshape(n, n, 1), lambda y: y.reshape(-1)
    if kind == "Denoising":
        return O.Mask(np.ones((1, 1, 1))), *channels_first(n)
    assert kind == "GeneralH", kind
    columns = np.arange(C * n * n).reshape(C, n, n).transpose(1, 2, 0).reshape(-1)
    return O.matrix(run["H_dense"][:, columns], (n, n, C)), lambda y: y, lambda y: y


@pytest.mark.golden("plug_and_play", "ops_ddrm_", "ops_ddnm_")
def test_spectral_operators(golden_file):
    run, meta = load(golden_file)
    if "cls" not in meta:
        pytest.skip("tables, not an operator")
    if meta["cls"] in REFUSED:
        pytest.skip(f"refused: {REFUSED[meta['cls']]}")
    A, ours, official = spectral(run, meta)
    C, name = meta["channels"], golden_file.stem
    flat = lambda x: np.moveaxis(np.asarray(x), -1, 0).reshape(-1)

    @jax.jit
    def both(A, x, y, y_rand):
        c = A.Vt(x)
        zero = jnp.zeros_like(x)
        s = jnp.broadcast_to(A.singular(c), c.shape)
        return A(x), A.T(y), A.T(y_rand), A.pinv(y), A.pinv(y_rand), A.prox(zero, 0.1, y), A.prox(zero, 0.1, y_rand), s

    for dtype, x64, tolerance in ((jnp.float64, True, 1e-9), (jnp.float32, False, 1e-4)):
        with jax.enable_x64(x64):
            for b, x in enumerate(images(run["x"])):
                args = [jnp.asarray(a, dtype) for a in (x, ours(run["y"][b]), ours(run["y_rand"][b]))]
                y, Ty, Tr, py, pr, ey, er, s = jax.device_get(both(A, *args))
                check(f"{name} y", official(y), run["y"][b], tolerance)
                for key, values in (("Ht_y", (Ty, Tr)), ("pinv_y", (py, pr)), ("pinv_eta_y", (ey, er))):
                    if key in run:
                        expected = run[key][b]
                        best = min(values, key=lambda v: np.abs(flat(v) - expected).max())
                        check(f"{name} {key}", flat(best), expected, tolerance)
                kept = np.sort(run["singulars"][run["singulars"] > 0])
                if meta["cls"] != "SRConv" or C == 3:
                    check(f"{name} singular values", np.sort(s.reshape(-1))[-len(kept) :], kept, tolerance)


@pytest.mark.golden("plug_and_play", "ops_dps_resizer")
def test_resizer(golden_file):
    run, meta = load(golden_file)
    for number, _, scale, kernel, status in meta["cases"]:
        if status != "ok":
            continue
        x = images(run[f"x_{number}"])
        with jax.enable_x64(True):
            got = np.stack([O.resize(jnp.asarray(one), scale, kernel) for one in x])
        check(
            f"{golden_file.stem} {number} {kernel} float64", got, images(run[f"out_{number}"]), 1e-6
        )  # their weights are float32
        for at, axis in enumerate(run[f"dims_{number}"]):
            fov, w = run[f"fov_{number}_{at}"], run[f"w_{number}_{at}"]
            M = np.zeros((w.shape[1], run[f"x_{number}"].shape[axis]))
            np.add.at(M, (np.arange(w.shape[1]), fov), w)
            check(f"{golden_file.stem} {number} matrix", O.resize_matrix(M.shape[1], float(scale), kernel), M, 1e-6)


@pytest.mark.golden("plug_and_play", "ops_diffpir_imresize")
def test_imresize(golden_file):
    run, meta = load(golden_file)
    for number, shape, scale in meta["cases"]:
        x, expected = jnp.asarray(run[f"x_{number}"]), run[f"out_{number}"]
        check(f"{golden_file.stem} {number} float32", O.resize(x, scale), expected, 1e-5)
        factor = round(1 / scale)
        if factor > 1 and all(n % factor == 0 for n in shape[:2]):
            check(f"{golden_file.stem} {number} operator", O.Resize(factor)(x), expected, 1e-5)


@pytest.mark.golden("plug_and_play", "ops_diffpir_fft")
def test_closed_form_proximal_map(golden_file):
    """In float64 as theirs; in float32 far closer to their float64 than theirs."""
    run, _ = load(golden_file)
    solve = jax.jit(lambda A, z, rho, y: A.prox(z, rho, y))
    for name in [k for k in run if "_f64_alpha" in k]:
        head, rho = name.split("_f64_alpha")
        factor = int(head.removeprefix("sf"))
        for b, k in enumerate(run[f"{head}_k"]):
            z, y = images(run[f"{head}_x"])[b], images(run[f"{head}_y"])[b]
            expected = images(run[name])[b]
            errors = []
            for dtype, x64 in ((jnp.float64, True), (jnp.float32, False)):
                with jax.enable_x64(x64):
                    A = O.Blur(jnp.asarray(k[0], dtype), factor=factor)
                    got = solve(A, *(jnp.asarray(a, dtype) for a in (z, float(rho), y)))
                    tolerance = 1e-9 if x64 else 5e-6
                    errors.append(check(f"{golden_file.stem} {name} {dtype.__name__}", got, expected, tolerance))
            theirs = run.get(f"{head}_f32_alpha{rho}")
            if theirs is not None and float(rho) <= 1e-6:
                assert errors[1] < 0.1 * np.abs(images(theirs)[b] - expected).max() / np.abs(expected).max()


def scipys_gaussian(size, std):
    """A delta under ``scipy.ndimage.gaussian_filter``: truncated at 4 std, the tails mirrored at the kernel's edge."""
    reach = int(4 * std + 0.5)
    g = O.gaussian_kernel(2 * reach + 1, std).sum(0)
    at = (np.arange(2 * reach + 1) - reach + size // 2) % (2 * size)
    line = np.bincount(np.minimum(at, 2 * size - 1 - at), g, size)
    return np.outer(line, line)


@pytest.mark.golden("plug_and_play", "ops_dps_kernels")
def test_kernels_and_reflected_blur(golden_file):
    run, _ = load(golden_file)
    gaussians = {}
    for name in [k for k in run if k.startswith("gauss_")]:
        size, std = name.split("_")[1:]
        size, std = int(size), float(std)
        gaussians[name] = run[name]
        check(f"{golden_file.stem} {name}", scipys_gaussian(size, std), run[name], 1e-12)
        if size > 8 * std:
            check(f"{golden_file.stem} {name} ours", O.gaussian_kernel(size, std), run[name], 1e-4)
    for name in [k for k in run if k.startswith("motion_")]:  # the same paths, drawn without Pillow's whole numbers
        size, intensity, seed = name.split("_")[1:]
        got = O.motion_kernel(int(size), float(intensity), np.random.RandomState(int(seed.removeprefix("seed"))))
        overlap = np.corrcoef(got.ravel(), run[name].ravel())[0, 1]
        print(f"{golden_file.stem} {name}: correlation {overlap:.4f}")
        assert overlap > 0.95
    errors = []
    for k in gaussians.values():
        if len(k) <= run["blur_x"].shape[-1]:
            with jax.enable_x64(True):
                A = O.Blur(k.astype(np.float32).astype(float)[::-1, ::-1], border="reflect")  # they correlate
                got = np.stack([A(jnp.asarray(x)) for x in images(run["blur_x"])])
            errors.append(np.abs(got - images(run["blur_Ax"])).max())
    print(f"{golden_file.stem} blur: error {min(errors):.1e}")
    assert min(errors) < 1e-9


@pytest.mark.golden("plug_and_play", "ops_dps_misc")
def test_phase_and_poisson(golden_file):
    run, _ = load(golden_file)
    x = images(run["phase_x"])
    for name in [k for k in run if k.startswith("phase_0")]:
        pad = (run[name].shape[-1] - x.shape[1]) // 2
        A = O.PhaseRetrieval(8 * pad / x.shape[1])
        check(f"{golden_file.stem} {name}", np.stack([A(jnp.asarray(one)) for one in x]), images(run[name]), 1e-5)
    for name in [k for k in run if k.startswith("poisson_seed")]:  # other draws: the grid of counts, and the noise's size
        rate = {"rate1": 1.0, "rate05": 0.5}[name.split("_")[-1]]
        clean = images(run["poisson_x"])[0]
        ours = np.asarray(O.noise.poisson(jax.random.key(0), jnp.asarray(clean), rate))
        level = np.clip((clean + 1) / 2, 0, 1)
        for y in (images(run[name])[0], ours):
            counts = (y + 1) / 2 * 255 * rate
            inside = np.abs(y) < 1
            np.testing.assert_allclose(counts[inside], np.round(counts[inside]), atol=1e-3)
            z = ((y + 1) / 2 - level) / np.sqrt(np.maximum(level, 1e-9) / (255 * rate))
            z = z[inside & (level > 0.1) & (level < 0.9)]
            assert abs(z.std() - 1) < 5 / np.sqrt(2 * z.size) and abs(z.mean()) < 5 / np.sqrt(z.size)


def dps_mask(kind, size, rng, margin, lengths=(8, 16), share=(0.3, 0.7)):
    """DPS's ``mask_generator`` (1 = kept), which draws from numpy's global stream and not by a seed of its own."""
    mask = np.ones((size, size), np.int8)
    if kind == "random":
        dropped = int(size**2 * rng.uniform(*share))
        mask.reshape(-1)[rng.choice(size**2, dropped, replace=False)] = 0
        return mask
    height, width = rng.randint(*lengths), rng.randint(*lengths)
    top, left = rng.randint(margin, size - margin - height), rng.randint(margin, size - margin - width)
    mask[top : top + height, left : left + width] = 0
    return 1 - mask if kind == "extreme" else mask


@pytest.mark.golden("plug_and_play", "ops_dps_masks")
def test_masks_of_dps(golden_file):
    """Its masks as operators: what is kept comes through, the adjoint of what is dropped is 0."""
    run, _ = load(golden_file)
    x = np.random.default_rng(0).normal(size=(32, 32, 3))
    for name in [k for k in run if run[k].shape == (32, 32)]:
        kind, seed = name.split("_seed")
        mask = dps_mask(kind, 32, np.random.RandomState(int(seed)), 4)
        np.testing.assert_array_equal(mask, run[name], err_msg=name)
        A = O.Mask(mask[..., None])
        np.testing.assert_array_equal(np.asarray(A.T(A(jnp.asarray(x)))) == 0, np.broadcast_to(mask[..., None] == 0, x.shape))
    large = np.argwhere(dps_mask("box", 256, np.random.RandomState(0), 16, (128, 129)) == 0)
    np.testing.assert_array_equal([*large.min(0), *(large.max(0) + 1)], run["box256_seed0_tlbr"])
    packed = np.packbits(dps_mask("random", 256, np.random.RandomState(0), 16))
    np.testing.assert_array_equal(packed, run["random256_seed0_packed"])
