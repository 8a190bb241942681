"""diffjax.operators.masks: the published rules exactly, and LaMa's drawings in kind."""

import numpy as np
import pytest

import diffjax as dj
from diffjax.operators import masks


@pytest.mark.golden("inpainting", "masks")
def test_official_masks_are_equal(golden_file):
    with np.load(golden_file) as file:
        found = {key: file[key] for key in file if not key.startswith("full")}
    assert found
    for key, mask in found.items():
        name, shape = key.split("_")
        shape = tuple(int(n) for n in shape.split("x"))
        np.testing.assert_array_equal(masks.make(name, shape), mask, err_msg=key)


def test_known_fractions_at_256():
    shape = (256, 256)
    fractions = {name: masks.make(name, shape).mean() for name in ("half", "altern", "sr2", "expand")}
    assert fractions == {"half": 0.5, "altern": 0.5, "sr2": 0.25, "expand": 0.0625}
    assert np.argwhere(masks.make("expand", shape)).min() == 96 and np.argwhere(masks.make("expand", shape)).max() == 159


@pytest.mark.parametrize("size", [32, 48, 64, 128, 256])
def test_text_keeps_about_86_percent(size):
    known = masks.make("text", (size, size)).mean()
    assert 0.82 <= known <= 0.90
    if size == 256:
        assert known == pytest.approx(0.86, abs=0.005)


@pytest.mark.parametrize("name", sorted(masks.MASKS))
@pytest.mark.parametrize("shape", [(32, 32), (28, 40), (64, 64), (8, 8)])
def test_every_mask_has_both_kinds_and_is_repeatable(name, shape):
    for seed in range(4):
        mask = masks.make(name, shape, seed)
        assert mask.shape == shape and mask.dtype == np.float32 and set(np.unique(mask)) == {0.0, 1.0}
        assert np.array_equal(mask, masks.make(name, shape, seed))


@pytest.mark.parametrize("name", ["narrow", "wide", "box", "random"])
def test_seeds_differ(name):
    assert len({masks.make(name, (32, 32), seed).tobytes() for seed in range(12)}) >= 11


def _thickness(mask):
    """Radius of the largest disc inside the hole, in pixels."""
    ndimage = pytest.importorskip("scipy.ndimage")
    return ndimage.distance_transform_edt(np.pad(mask, 1, constant_values=1) == 0).max()


def test_strokes_scale_with_the_image_and_wide_is_wider_than_narrow():
    narrow, wide = ([masks.make(name, (128, 128), seed) for seed in range(16)] for name in ("narrow", "wide"))
    assert np.mean([_thickness(m) for m in wide]) > 2 * np.mean([_thickness(m) for m in narrow])
    for name, large in (("narrow", narrow), ("wide", wide)):
        small = np.mean([masks.make(name, (64, 64), seed).mean() for seed in range(16)])
        assert small == pytest.approx(np.mean([m.mean() for m in large]), abs=0.06)
        assert all(m.mean() >= 0.5 for m in large)  # LaMa keeps drawings that hide at most half


def test_a_stroke_is_a_line_with_round_ends():
    hidden = np.zeros((40, 60), bool)
    masks._stroke(hidden, np.array([10.0, 20.0]), np.array([50.0, 20.0]), 8.0)
    assert hidden.sum() == pytest.approx(40 * 8 + np.pi * 16, rel=0.02)
    assert hidden[20, 6] and not hidden[20, 5] and not hidden[16, 6]
    hairline = np.zeros((40, 60), bool)
    masks._stroke(hairline, np.array([3.0, 3.0]), np.array([50.0, 31.0]), 0.3)
    assert np.all(hairline[:, 4:49].any(axis=0))  # a stroke thinner than a pixel still has no gaps


def test_named_masks_are_what_the_operator_takes():
    mask = masks.named("narrow", (32, 32, 3), seed=2)
    np.testing.assert_array_equal(mask[..., 0], masks.make("narrow", (32, 32), 2))
    x = np.ones((32, 32, 3), np.float32)
    np.testing.assert_array_equal(dj.operators.Mask(mask)(x), x * mask)
    assert masks.named("thin", (np.int64(32), 32), seed=2).tobytes() == mask.tobytes()
    for make, message in (
        (lambda: masks.named("narow", (32, 32)), "did you mean 'narrow'"),
        (lambda: masks.named("half", (32,)), r"shape \(32,\) is not that of an image: give \(H, W\)"),
        (lambda: masks.named("half", (32.0, 32)), "a side 32.0"),
        (lambda: masks.named("expand", (6, 6)), "nothing known"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert "\n" not in str(error.value)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'narrow'") as error:
        masks.make("narow", (32, 32))
    assert "\n" not in str(error.value)


def test_nothing_known_is_an_error():
    with pytest.raises(ValueError, match="nothing known"):
        masks.make("expand", (6, 6))
