"""experiments.figures: where the pixels of a grid end up."""

import numpy as np
import pytest

from diffjax.cli import figures

Image = pytest.importorskip("PIL.Image")


def _image(value, shape=(32, 32, 1)):
    return np.full(shape, value, np.float32)


def _count(page, colour):
    return int(np.all(page == colour, axis=-1).sum())


def test_grid_shows_every_image_enlarged(tmp_path):
    red = np.zeros((32, 32, 3), np.float32) + [1, -1, -1]
    green = np.zeros((32, 32, 3), np.float32) + [-1, 1, -1]
    columns = [("degraded", [_image(-1.0), _image(-1.0)]), ("mean", [red, green])]
    figures.grid(columns, tmp_path / "g.png", rows=["one", "two"])
    page = np.asarray(Image.open(tmp_path / "g.png"))
    cell = 128 * 128  # 32 pixels four times
    assert _count(page, (255, 0, 0)) == cell and _count(page, (0, 255, 0)) == cell
    black = np.argwhere(np.all(page == 0, axis=-1))
    reds = np.argwhere(np.all(page == (255, 0, 0), axis=-1))
    assert black[:, 1].max() < reds[:, 1].min()  # columns from left to right
    assert reds[:, 0].min() > 10 and np.any(page[: reds[:, 0].min()] < 128)  # a heading in ink above


def test_enlargement_repeats_pixels(tmp_path):
    board = (np.indices((16, 16)).sum(0) % 2 * 2.0 - 1)[..., None]
    figures.grid([("x", [board])], tmp_path / "g.png")
    page = np.asarray(Image.open(tmp_path / "g.png").convert("L"))
    top = page.shape[0] - 128 - 6
    assert np.array_equal(page[top : top + 128, 6:134], np.kron(board[..., 0] > 0, np.ones((8, 8))) * 255)


def test_spread_states_its_scale():
    low, high = np.full((4, 4, 3), 0.1), np.zeros((4, 4, 3))
    high[0, 0] = 0.4
    label, (a, b) = figures.spread([low, high])
    assert "0.40" in label
    assert a == pytest.approx(2 * 0.1 / 0.4 - 1) and b[0, 0] == pytest.approx(1) and b[1, 1] == -1
    label, (zero,) = figures.spread([np.zeros((4, 4, 1))])
    assert np.all(zero == -1) and "0.00" in label


def test_labels_never_run_into_the_next_column():
    font = figures.load_font()
    assert figures._wrap("spread (white = 0.31)", font, 60) != ["spread (white = 0.31)"]
    assert " ".join(figures._wrap("a long label of words", font, 40)) == "a long label of words"


def test_sample_grid_has_one_cell_per_image(tmp_path):
    figures.sample_grid([_image(-1.0) for _ in range(7)], tmp_path / "s.png", columns=4)
    page = np.asarray(Image.open(tmp_path / "s.png"))
    assert page.shape == (2 * 66 + 2, 4 * 66 + 2, 3) and _count(page, (0, 0, 0)) == 7 * 64 * 64
    figures.sample_grid([np.zeros((100, 80, 3), np.float32)] * 2, tmp_path / "large.png")
    assert Image.open(tmp_path / "large.png").size == (2 * 82 + 2, 102 + 2)


def test_unequal_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one length"):
        figures.grid([("a", [_image(0)]), ("b", [])], tmp_path / "g.png")
    with pytest.raises(ValueError, match="one length"):
        figures.grid([("a", [_image(0)])], tmp_path / "g.png", rows=["x", "y"])
    with pytest.raises(ValueError, match="at least one"):
        figures.sample_grid([], tmp_path / "g.png")
    assert list(tmp_path.iterdir()) == []
