"""Reading data sets, and the order in which a run sees them."""

import gzip

import jax
import numpy as np
import pytest

from diffjax.training import data, step

PIL = pytest.importorskip("PIL.Image")


def idx_bytes(array):
    """The idx format, from its description: 0 0 type axes, big-endian sizes, data."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (7, 5, 4), np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 0, 1, 2, 2], np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (3, 5, 4), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([2, 1, 0], np.uint8),
    }
    for i, (name, array) in enumerate(arrays.items()):
        if i % 2:
            (tmp_path / name).write_bytes(idx_bytes(array))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return tmp_path, arrays


def test_idx_padded_to_the_centre(idx_folder):
    folder, arrays = idx_folder
    images = data.load(folder, size=8, classes=3)
    assert images.train.shape == (7, 8, 8, 1) and images.train.dtype == np.uint8 and images.test.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(images.train[:, 1:6, 2:6, 0], arrays["train-images-idx3-ubyte"])
    assert images.train.sum() == arrays["train-images-idx3-ubyte"].sum(), "the border is black"
    np.testing.assert_array_equal(images.test_labels, [2, 1, 0])
    assert data.load(folder, size=8).train_labels is None


def test_npz_with_and_without_a_test_part(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    images = data.load(tmp_path / "a.npz", size=4, channels=3, holdout=5, classes=2)
    assert len(images.train) == 15 and len(images.test) == 5
    rows = {row.tobytes(): i for i, row in enumerate(x)}
    seen = [rows[row.tobytes()] for row in np.concatenate([images.train, images.test])]
    assert sorted(seen) == list(range(20)), "every image is in exactly one part"
    np.testing.assert_array_equal(np.concatenate([images.train_labels, images.test_labels]), np.array(seen) % 2)

    np.savez(tmp_path / "b.npz", x_train=x[:, :, :, 0], x_test=x[:2, :, :, 0])
    images = data.load(tmp_path / "b.npz", size=4, channels=3)
    np.testing.assert_array_equal(images.test, np.repeat(x[:2, :, :, :1], 3, -1))


def test_pictures_in_class_folders_of_mixed_sizes(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for name, level in (("dark", 10), ("light", 200)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8 + 4 * i, 12, 3), level, np.uint8)
                PIL.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    images = data.load(tmp_path, size=6, channels=3, fit="resize", classes=2)
    assert images.names == ("dark", "light") and images.train.shape == (6, 6, 6, 3)
    np.testing.assert_array_equal(images.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(images.train[:, 0, 0, 0], [10] * 3 + [200] * 3)


def test_resize_keeps_the_proportions(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8), (8, 16))  # 8 x 16: the centre 8 x 8 survives
    np.savez(tmp_path / "a.npz", x=np.stack([ramp] * 4))
    x = data.load(tmp_path / "a.npz", size=4, fit="resize", holdout=1).train
    expected = np.array([45, 65, 85, 105])  # means of neighbouring columns 4..11
    assert x.shape == (3, 4, 4, 1) and np.abs(x[0, 1, :, 0] - expected).max() <= 2


def test_scale_reaches_both_ends():
    np.testing.assert_array_equal(data.scale(np.array([0, 255], np.uint8)), np.array([-1, 1], np.float32))


def put(folder, name, content):
    (folder / name).write_bytes(content)
    return folder


LABELS = "t10k-labels-idx1-ubyte"
BAD = {
    "missing": (lambda d: d / "nowhere", "does not exist"),
    "no labels file of images": (lambda d: (d / "train-images-idx3-ubyte.gz").unlink() or d, "no train-images-idx3-ubyte"),
    "magic": (lambda d: put(d, LABELS, b"\x1f\x8b\x08\x00zz"), "magic 1f8b0800"),
    "cut": (lambda d: put(d, LABELS, idx_bytes(np.zeros(9, np.uint8))[:-2]), "cut short"),
    "damaged gzip": (lambda d: put(d, "train-images-idx3-ubyte.gz", b"\x1f\x8b\x08\x00zz"), "cannot be read"),
    "other count": (lambda d: put(d, LABELS, idx_bytes(np.zeros(9, np.uint8))), "belong together"),
    "text file": (lambda d: put(d, "a.txt", b"x") / "a.txt", "neither a folder nor"),
    "broken npz": (lambda d: put(d, "a.npz", b"x") / "a.npz", "cannot be read as .npz"),
    "empty folder": (lambda d: (d / "e").mkdir() or d / "e", "no pictures"),
    "broken png": (lambda d: (d / "p").mkdir() or put(d / "p", "a.png", b"x"), "is not an image that can be read"),
}


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD)
def test_bad_data_is_one_line(idx_folder, make, message):
    with pytest.raises(ValueError, match=message) as error:
        data.load(make(idx_folder[0]), size=8, classes=3)
    assert "\n" not in str(error.value)


def test_bad_options_are_one_line(idx_folder):
    for options, message in (
        (dict(size=4), "larger than size=4"),
        (dict(size=8, classes=2), "labels from 0 to 2"),
        (dict(size=8, fit="padd"), "did you mean 'pad'"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load(idx_folder[0], **options)


# --- order --------------------------------------------------------------------------------------------------------


def test_every_epoch_shows_every_image_once_in_a_new_order():
    count, batch = 10, 4  # 5 steps are 2 epochs; the third batch straddles them
    seen = np.concatenate([data.indices(count, batch, step, seed=1) for step in range(5)])
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert (first != second).any() and (first != np.arange(10)).any()
    assert (seen[:4] != data.indices(count, batch, 0, seed=2)).any(), "the seed matters"
    np.testing.assert_array_equal(data.indices(count, batch, 3, seed=1), seen[12:16]), "the step alone is enough"


def test_a_batch_larger_than_the_data():
    assert np.bincount(data.indices(3, 9, 0, seed=0)).tolist() == [3, 3, 3]


@pytest.mark.parametrize("flip", [False, True])
def test_hosts_share_one_batch(flip):
    x = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), np.uint8)
    y = np.arange(12, dtype=np.int32)
    examples = {"x": x, "cond": y}
    whole = data.Stream(examples, 8, seed=3, flip=flip)
    shares = [data.Stream(examples, 8, seed=3, flip=flip, process_index=i, process_count=2) for i in range(2)]
    for n in (0, 5):
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(share(n) for share in shares))
        jax.tree.map(np.testing.assert_array_equal, joined, whole(n))
    with pytest.raises(ValueError, match="not divisible by 3 hosts"):
        data.Stream(examples, 8, process_count=3)


def test_flip_mirrors_about_half_from_left_to_right():
    x = np.broadcast_to(np.arange(4, dtype=np.uint8)[None, None, :, None], (64, 2, 4, 1))
    batch = data.Stream({"x": x}, 64, flip=True)(0)
    first_row = batch["x"][:, 0, :, 0]
    mirrored = (first_row == [3, 2, 1, 0]).all(1)
    assert batch.keys() == {"x"} and (mirrored | (first_row == [0, 1, 2, 3]).all(1)).all()
    assert 16 <= mirrored.sum() <= 48  # 32 +- 4 standard deviations


def test_pairs_are_mirrored_by_a_function_of_the_whole_batch():
    x = np.arange(32 * 2 * 4 * 1, dtype=np.float32).reshape(32, 2, 4, 1)
    pairs = {"x": x, "cond": {"low": x[:, ::2, ::2], "label": np.arange(32)}}
    flip = lambda batch: jax.tree.map(lambda a: a[:, :, ::-1] if a.ndim == 4 else a, batch)
    batch = data.Stream(pairs, 32, flip=flip)(3)
    rows = batch["cond"]["label"]
    mirrored = (batch["x"] != x[rows]).any((1, 2, 3))
    assert 0 < mirrored.sum() < 32
    np.testing.assert_array_equal(batch["x"], np.where(mirrored[:, None, None, None], x[rows][:, :, ::-1], x[rows]))
    low = x[rows][:, ::2, ::2]
    np.testing.assert_array_equal(batch["cond"]["low"], np.where(mirrored[:, None, None, None], low[:, :, ::-1], low))
    with pytest.raises(ValueError, match="mirrors images x and nothing else"):
        data.Stream(pairs, 8, flip=True)(0)
    with pytest.raises(ValueError, match="mirrors images x and nothing else"):
        data.Stream({"x": np.zeros((8, 4))}, 8, flip=True)(0)


def test_any_examples_stream_and_are_decoded_by_their_own_function(tmp_path):
    """Volumes on the disk; latents stored as moments and drawn anew at each step."""
    np.save(tmp_path / "volumes.npy", np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4, 1), np.uint8))
    volumes = np.load(tmp_path / "volumes.npy", mmap_mode="r")
    batch = data.Stream({"x": volumes}, 4)(0)
    chosen = data.indices(6, 4, 0, 0)
    decoded = data.decode(batch)["x"]
    assert decoded.dtype == np.float32 and decoded.shape == (4, 3, 4, 4, 1)
    np.testing.assert_allclose(decoded, volumes[chosen] / 127.5 - 1, atol=1e-6)
    labels = {"x": np.zeros((2, 2, 1), np.uint8), "cond": {"label": np.uint8(7), "tokens": np.arange(3, dtype=np.uint8)}}
    assert data.decode(labels)["cond"]["label"] == 7 and data.decode(labels)["cond"]["tokens"].tolist() == [0, 1, 2]

    def draw(moments, key):
        mean, std = moments["x"]
        return {"x": mean + std * jax.random.normal(key, mean.shape)}

    seen = []
    see = lambda net, schedule, x_0, t, noise: (seen.append(x_0), (x_0.sum(), {}))[1]
    example = step.example_loss(None, None, see, decode=draw)
    for key in (0, 0, 1):
        example({}, jax.random.key(key), {"x": (np.full(500, 3.0), np.full(500, 0.1))}, 1.0, True)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert abs(np.std(seen[0]) - 0.1) < 0.02 and abs(np.mean(seen[0]) - 3) < 0.02  # 4 to 5 standard errors
    assert np.abs(seen[2] - seen[0]).max() > 0.05, "another step, another draw"


@pytest.mark.parametrize(
    "examples, message",
    [({"x": np.zeros((3, 2)), "cond": np.zeros(4)}, "[3, 4] rows"), ({"x": np.zeros((0, 2))}, "no training examples")],
)
def test_examples_that_do_not_belong_together(examples, message):
    with pytest.raises(ValueError) as error:
        data.Stream(examples, 2)
    assert message in str(error.value)
