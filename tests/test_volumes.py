"""Volumes: what a NIfTI file says comes back as it was, coarse and fine lie at one place, and strange files give one line."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import volumes
from diffjax.operators.slices import slice_matrix
from diffjax.volumes import Coarse, Cuts, Intensity

nibabel = pytest.importorskip("nibabel")
rng = np.random.default_rng(0)


def oblique(spacing=(0.7, 0.9, 4.0)):
    """A turned grid that is no multiple of quarter turns, with a handedness of its own."""
    a, b = 0.3, -0.5
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]) @ np.diag([-1, 1, 1])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (31.5, -12.25, 7.0)
    return affine


def saved(path, data, affine, kind=nibabel.Nifti1Image, sform=1, qform=1, **header):
    image = kind(data, affine)
    for name, value in header.items():
        image.header[name] = value
    image.set_qform(affine if qform else None, qform)
    image.set_sform(affine if sform else None, sform)
    image.to_filename(str(path))
    return path


def ball(shape, spacing, at=(0.1, -0.2, 0.0)):
    """A bright ball, its centre off the middle by ``at`` of the extent."""
    grid = [(np.arange(n) + 0.5) / n - 0.5 - c for n, c in zip(shape, at)]
    u, v, w = np.meshgrid(*[g * n * s for g, n, s in zip(grid, shape, spacing)], indexing="ij")
    return np.clip(6 - np.sqrt(u**2 + v**2 + w**2), 0, 1).astype(np.float32)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (2, 0), (0, 0)])
def test_place_and_numbers_stay(tmp_path, kind, codes):
    affine = oblique()
    data = rng.normal(size=(6, 5, 4)).astype(np.float32)
    path = saved(tmp_path / "a.nii.gz", data, affine, kind, *codes)
    found = volumes.read(path)
    reference = nibabel.load(path)
    np.testing.assert_array_equal(found.data, data)
    np.testing.assert_allclose(found.affine, reference.affine)
    np.testing.assert_allclose(found.spacing, (0.7, 0.9, 4.0), rtol=1e-6)
    assert found.slice_axis == 2
    volumes.write(tmp_path / "b.nii.gz", found.data, found)
    again = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(again.affine, reference.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(again.dataobj), data)
    assert [int(again.header[f"{name}_code"]) for name in ("sform", "qform")] == list(codes)
    assert again.header.get_xyzt_units() == reference.header.get_xyzt_units()


def test_sform_and_qform_that_differ_both_stay(tmp_path):
    """A scan registered to a template has the scanner's place in the one and the template's in the other."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32) + rng.random((4, 4, 4)).astype(np.float32), np.eye(4))
    scanner, template = oblique((1, 1, 3)), np.diag([2.0, 2, 6, 1])
    image.set_qform(scanner, 1)
    image.set_sform(template, 4)
    image.to_filename(str(tmp_path / "a.nii"))
    volumes.write(tmp_path / "b.nii", np.zeros((4, 4, 12)), volumes.read(tmp_path / "a.nii"), (2,), 3)
    again = nibabel.load(tmp_path / "b.nii")
    for name, place in (("sform", template), ("qform", scanner)):
        form, code = getattr(again.header, f"get_{name}")(coded=True)
        np.testing.assert_allclose(form, volumes.finer(place, (2,), 3), atol=1e-5)
        assert code == {"sform": 4, "qform": 1}[name]


@pytest.mark.parametrize("codes", [(1, 1), (0, 0)])
def test_the_finer_grid_lies_where_the_coarse_one_lay(tmp_path, codes):
    """Corners of the field of view, and the centre of mass of a ball, in millimetres."""
    spacing = (1.0, 1.5, 4.0)
    source = volumes.read(saved(tmp_path / "a.nii", ball((24, 16, 8), spacing), oblique(spacing), nibabel.Nifti1Image, *codes))
    coarse = Coarse("through-plane", 4, 2)
    fine = coarse.enlarge(source.data, "linear")
    volumes.write(tmp_path / "b.nii", fine, source, coarse.axes, 4)
    again = volumes.read(tmp_path / "b.nii")
    assert again.data.shape == (24, 16, 32)
    np.testing.assert_allclose(again.spacing, (1, 1.5, 1), rtol=1e-5)

    def corner(v, end):
        index = np.array([n - 0.5 if end else -0.5 for n in v.data.shape])
        return v.affine[:3, :3] @ index + v.affine[:3, 3]

    def centre(v):
        mean = [np.average(np.arange(n), weights=v.data.sum(tuple({0, 1, 2} - {a}))) for a, n in enumerate(v.data.shape)]
        return v.affine[:3, :3] @ mean + v.affine[:3, 3]

    for end in (False, True):
        np.testing.assert_allclose(corner(again, end), corner(source, end), atol=1e-4)
    np.testing.assert_allclose(centre(again), centre(source), atol=1e-3)


def test_slope_and_intercept_and_units(tmp_path):
    stored = rng.integers(-200, 3000, (5, 4, 3)).astype(np.int16)
    path = saved(tmp_path / "a.nii.gz", stored, oblique(), scl_slope=1.0, scl_inter=0.0)
    image = nibabel.Nifti1Image(stored, oblique())
    image.header.set_slope_inter(0.25, -10.5)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = np.array([0.25, -10.5], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    found = volumes.read(path)
    np.testing.assert_allclose(found.data, 0.25 * stored - 10.5)
    scale = Intensity.of(found.data)
    volumes.write(tmp_path / "b.nii.gz", scale.restored(scale.normalised(found.data)), found)
    np.testing.assert_allclose(volumes.read(tmp_path / "b.nii.gz").data, 0.25 * stored - 10.5, atol=2e-4)


def test_floats_are_never_quantised(tmp_path):
    data = (1e-3 * rng.normal(size=(5, 4, 3)) + 1000).astype(np.float32)
    found = volumes.read(saved(tmp_path / "a.nii", data, oblique()))
    volumes.write(tmp_path / "b.nii", found.data, found)
    np.testing.assert_array_equal(volumes.read(tmp_path / "b.nii").data, data)
    scale = Intensity.of(data)
    inside = scale.normalised(data)
    assert len(np.unique(inside)) > 0.9 * len(np.unique(data)) and inside.max() > 1 > -1 > inside.min()  # nothing clipped


def test_nan_background_4d_and_flat_files(tmp_path):
    data = rng.normal(size=(5, 4, 3)).astype(np.float32)
    data[0] = np.nan
    data[1, 0, 0] = np.inf
    found = volumes.read(saved(tmp_path / "nan.nii", data, oblique()))
    assert np.isnan(found.data[0]).all() and np.isnan(found.data[1, 0, 0]) and np.isfinite(found.data[2:]).all()
    assert any("not finite" in note for note in found.notes)
    series = rng.normal(size=(5, 4, 3, 7)).astype(np.float32)
    path = saved(tmp_path / "4d.nii.gz", series, oblique())
    with pytest.raises(ValueError, match="holds 7 volumes of 5x4x3: choose frame 0 to 6"):
        volumes.read(path)
    with pytest.raises(ValueError, match="no frame 7"):
        volumes.read(path, 7)
    with pytest.raises(ValueError, match="holds one volume, there is no frame 2"):
        volumes.read(tmp_path / "nan.nii", 2)
    np.testing.assert_array_equal(volumes.read(path, 5).data, series[..., 5])
    np.testing.assert_array_equal(volumes.read(saved(tmp_path / "one.nii", series[..., :1], oblique())).data, series[..., 0])
    flat = volumes.read(saved(tmp_path / "flat.nii", series[..., 0, 0], oblique()))
    assert flat.data.shape == (5, 4, 1) and any("one slice" in note for note in flat.notes)


def test_strange_files_give_one_line(tmp_path):
    good = saved(tmp_path / "good.nii", rng.normal(size=(9, 8, 7)).astype(np.float32), oblique()).read_bytes()
    huge = bytearray(good)
    huge[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    nowhere = bytearray(good)
    nowhere[252:256] = np.array([0, 1], "<i2").tobytes()
    nowhere[280:328] = bytes(48)
    nan = saved(tmp_path / "nan.nii", np.full((3, 3, 3), np.nan, np.float32), oblique()).read_bytes()
    complex_ = saved(tmp_path / "c.nii", np.ones((3, 3, 3), np.complex64), oblique()).read_bytes()
    colours = nibabel.Nifti1Image(np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4))
    colours.to_filename(str(tmp_path / "rgb.nii"))
    cases = {
        "empty": (b"", "is empty"),
        "text": (b"<html>", "is HTML"),
        "png": (b"\x89PNG\r\n\x1a\n" + bytes(600), "PNG picture"),
        "dicom": (bytes(128) + b"DICM" + bytes(600), "dcm2niix"),
        "noise": (rng.bytes(2000), "is no NIfTI volume"),
        "cut": (good[: len(good) // 2], "is cut off"),
        "cut gz": (gzip.compress(good)[:-200], "cut off|damaged"),
        "not gz": (b"\x1f\x8b" + rng.bytes(400), "damaged or cut off"),
        "huge": (bytes(huge), "are the most"),
        "nowhere": (bytes(nowhere), "gives voxels no place"),
        "nan": (nan, "no finite number"),
        "complex": (complex_, "complex numbers"),
        "rgb": ((tmp_path / "rgb.nii").read_bytes(), "holds colours"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            volumes.read(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value), name
    with pytest.raises(ValueError, match="does not exist"):
        volumes.read(tmp_path / "nothing.nii")
    with pytest.raises(ValueError, match="is a folder"):
        volumes.read(tmp_path)


def test_headers_with_any_bytes_changed_give_a_volume_or_one_line(tmp_path, capfd):
    good = saved(tmp_path / "good.nii", rng.normal(size=(9, 8, 7)).astype(np.float32), oblique()).read_bytes()
    path = tmp_path / "bad.nii"
    for seed in range(150):
        random = np.random.default_rng(seed)
        changed = bytearray(good)
        for at in random.integers(0, 348, random.integers(1, 12)):
            changed[at] = random.integers(256)
        path.write_bytes(changed)
        try:
            found = volumes.read(path)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error), seed
        else:
            assert found.data.ndim == 3 and np.isfinite(found.affine).all()
    assert capfd.readouterr().err == "", "what nibabel mends is not said on the error stream"


def test_nibabel_is_asked_for_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(ValueError, match=r"pip install 'diffjax\[medical\]'"):
        volumes.read(tmp_path / "a.nii")


def test_intensities_of_nothing_are_refused():
    with pytest.raises(ValueError, match="is 3 everywhere"):
        Intensity.of(np.full((2, 2, 2), 3.0))
    sparse = np.zeros((20, 20, 20))
    sparse[3, 3, 3] = 5.0  # percentiles alone would see air only
    assert Intensity.of(sparse) == Intensity(0.0, 5.0)


# --- coarse and fine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane,how", [("in-plane", "fourier"), ("in-plane", "cubic"), ("through-plane", "box"),
                                       ("through-plane", "gaussian")])  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_coarse_volumes_are_those_of_the_operator(plane, how, axis):
    x = rng.normal(size=(8, 12, 4)).astype(np.float32)
    coarse = Coarse(plane, 2, axis, how)
    stack = np.moveaxis(x, axis, 0) if plane == "in-plane" else x
    expected = np.asarray(coarse.operator(jnp.asarray(stack)[..., None]))[..., 0]
    expected = np.moveaxis(expected, 0, axis) if plane == "in-plane" else expected
    np.testing.assert_allclose(coarse(x), expected, atol=1e-5)
    assert coarse.fine_shape(coarse(x).shape) == x.shape == coarse.enlarge(coarse(x)).shape
    np.testing.assert_allclose(coarse.enlarge(coarse(np.full_like(x, 0.7))), 0.7, atol=1e-5)


def test_adjoints_by_inner_products():
    """<A x, y> = <x, A^T y> at the sizes and factors of the study."""
    for coarse in (Coarse("in-plane", 4), Coarse("in-plane", 2, how="cubic"), Coarse("through-plane", 4, 1, "gaussian")):
        with jax.enable_x64(True):
            A = coarse.operator
            x = rng.normal(size=(8, 16, 12, 1))
            Ax = np.asarray(A(jnp.asarray(x)))
            y = rng.normal(size=Ax.shape)
            np.testing.assert_allclose((Ax * y).sum(), (x * np.asarray(A.T(jnp.asarray(y)))).sum(), rtol=1e-10)


def test_a_crop_of_k_space_keeps_low_waves_and_drops_high_ones():
    n, factor = 24, 2
    A = dj.operators.Resize(factor, "fourier")
    wave = lambda k, n: np.cos(np.pi * k * (np.arange(n) + 0.5) / n)
    image = lambda k, n: jnp.asarray(np.outer(wave(k, n), np.ones(n))[..., None], jnp.float32)
    for k in (0, 3, 11):
        np.testing.assert_allclose(A(image(k, n)), image(k, n // factor), atol=1e-5)
        np.testing.assert_allclose(dj.operators.resize(image(k, n // factor), factor, "fourier"), image(k, n), atol=1e-5)
    for k in (12, 17, 23):
        np.testing.assert_allclose(A(image(k, n)), 0, atol=1e-5)


def test_slice_profiles():
    average = dj.operators.SliceAverage(3)(jnp.eye(12)[:, :, None, None])[..., 0, 0]
    np.testing.assert_allclose(slice_matrix(12, 3), average, atol=1e-6)
    gap = slice_matrix(8, 4, "box", 0.5)[0]
    np.testing.assert_allclose(gap[:4], [0, 0.5, 0.5, 0], atol=1e-12)
    row = slice_matrix(400, 20, "gaussian", 1.0)[10]
    centre = 10 * 20 + 9.5
    std = np.sqrt(np.sum(row * (np.arange(400) - centre) ** 2))
    shape = np.exp(-4 * np.log(2) * ((np.arange(400) - centre) / 20) ** 2)  # full width at half maximum: 20 thin slices
    assert np.abs(row / row.max() - shape / shape.max()).max() < 0.01 and abs(std - 20 / 2.3548) < 0.3
    for bad, message in (({"profile": "sinc"}, "slice profile 'sinc' is unknown"), ({"width": 9.0}, "width 9")):
        with pytest.raises(ValueError, match=message):
            dj.operators.ThickSlices(2, 0, **bad)


def test_cuts_contain_the_slice_axis_as_rows_and_come_back():
    x = rng.normal(size=(3, 4, 5))
    for coarse in (Coarse("through-plane", 2, 1), Coarse("in-plane", 2, 1)):
        stacks = volumes.cuts_of(coarse)
        assert len(stacks) == len({s.order for s in stacks}) == (2 if coarse.plane == "through-plane" else 1)
        for cuts in stacks:
            np.testing.assert_array_equal(cuts.volume(cuts.of(x)), x)
            assert (coarse.plane == "through-plane") == (cuts.of(x).shape[1] == 4)
    assert Cuts((2, 0, 1)).of(x).shape == (5, 3, 4)


def test_unknown_planes_and_factors_are_refused():
    for bad, message in (({"plane": "in plane"}, "is unknown: did you mean|is unknown"), ({"factor": 0}, "factor"),
                         ({"axis": 3}, "axis"), ({"how": "hann"}, "slice profile 'hann'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Coarse(**bad)
    with pytest.raises(ValueError, match="factor 4 does not divide axis 2 of 5: keep 4"):
        Coarse("through-plane", 4)(np.zeros((4, 4, 5)))
    assert Coarse("through-plane", 4).fitting(np.zeros((4, 4, 7))).shape == (4, 4, 4)
