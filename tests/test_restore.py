"""``diffjax restore``: what it leaves behind, that a seed decides the picture, and what it says to bad input."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_prior
from PIL import Image

import diffjax as dj
from diffjax import batch, replace, zoo
from diffjax import registry as methods
from diffjax.cli import restore, tasks


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    return tiny_prior.write(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def prior(prior_folder):
    return zoo.load(prior_folder)


@pytest.fixture
def cached(monkeypatch, prior, prior_folder):
    """The tiny prior is read once for all tests; others are read."""
    read = zoo.load
    monkeypatch.setattr(zoo, "load", lambda name: prior if name == str(prior_folder) else read(name))


# --- a run from end to end ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(prior_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    argv = [
        "--prior",
        str(prior_folder),
        "--limit",
        "3",
        "--samples",
        "2",
        "--steps",
        "7",
        "--batch",
        "4",
        "--out",
        str(out),
        "--mask",
        "wide",
    ]
    assert restore.main(argv) == 0
    return out / "tiny"


def png(path):
    return np.asarray(Image.open(path)).astype(np.float32)


def test_every_result_is_there(run):
    names = {f"fashion-0{n}{end}.png" for n in range(3) for end in ("-0", "-1", "-mean")}
    assert {p.name for p in (run / "images").iterdir()} == names
    width, height = Image.open(run / "grid.png").size
    assert width > 6 * 128 and height > 3 * 128  # degraded, two restorations, mean, spread, truth


def test_metrics(run):
    report = json.loads((run / "metrics.json").read_text())
    # 7 levels; the only jump point below 7 - 5 is 0: four more passes of five steps
    assert report["kernel_steps"] == report["network_calls"] == 7 + 4 * 5
    assert (report["method"], report["prior"], report["task"]) == ("repaint", "tiny", "inpainting: wide")
    assert report["seconds_compile"] > 0 and report["seconds_run"] > 0 and "lpips@64" in report["lpips_note"]
    assert [e["name"] for e in report["images"]] == ["fashion-00", "fashion-01", "fashion-02"]
    for key in ("psnr", "ssim", "lpips", "psnr_hole"):
        assert report[key] == pytest.approx(np.mean([e[key] for e in report["images"]]), abs=1e-4)


def test_known_pixels_are_kept_and_scores_belong_to_the_pictures(run):
    from diffjax.operators.masks import wide

    truth, _ = zoo.bundled.images("fashion")
    report = json.loads((run / "metrics.json").read_text())
    for n in range(3):
        mask = wide((32, 32), n)  # seed + number of the image
        results = [png(run / "images" / f"fashion-0{n}-{s}.png") for s in range(2)]
        bytes_ = (truth[n, ..., 0] + 1) * 127.5
        for x in results:
            np.testing.assert_allclose(x[mask == 1], bytes_[mask == 1], atol=0.51)
        assert np.abs(results[0] - results[1])[mask == 0].mean() > 1
        for x, scores in zip(results, report["images"][n]["samples"]):
            mse = np.mean((x - bytes_)[mask == 0] ** 2)
            assert scores["psnr_hole"] == pytest.approx(10 * np.log10(255**2 / mse), abs=0.05)


def test_an_earlier_output_is_replaced_whole(run, prior_folder, capsys):
    out = run.parent
    before = sorted(p.name for p in out.parent.iterdir())
    assert restore.main(["--mask", "wied", "--out", str(out)]) == 2
    assert sorted(p.name for p in out.parent.iterdir()) == before and (run / "grid.png").exists()


def test_the_seed_decides_the_picture_not_the_batch_nor_the_devices(prior):
    """And what the mask hides has no influence: here it is garbage in one of the runs."""
    truth, _ = zoo.bundled.images("fashion")
    truth = truth[:3]
    masks = np.stack([np.ones((32, 32), np.float32)] * 3)
    masks[:, 8:24, 10:30] = 0
    entry = methods.METHODS["repaint"]
    options = dict(labels=[1, None, 3], samples=2, steps=4, seed=7)
    a = batch.inpaint(prior, entry, truth, masks, batch=16, **options)
    garbage = np.where(masks[..., None] == 1, truth, np.nan)
    b = batch.inpaint(prior, entry, garbage, masks, batch=1, devices=1, **options)
    assert (a.devices, a.batch, b.devices, b.batch) == (min(6, jax.device_count()), 6, 1, 1)
    np.testing.assert_allclose(a.x, b.x, atol=1e-4)
    assert np.abs(a.x[0, 0] - a.x[0, 1]).max() > 0.1  # samples differ


def test_a_result_that_is_not_finite(prior, prior_folder, monkeypatch, tmp_path, capsys):
    broken = replace(prior, params=jax.tree.map(lambda a: a * np.nan, prior.params))
    monkeypatch.setattr(zoo, "load", lambda name: broken)
    argv = ["--limit", "1", "--samples", "1", "--steps", "3", "--devices", "1", "--out", str(tmp_path / "out")]
    assert restore.main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "fashion-00 is not finite from row 0 of 11" in error
    assert not list(tmp_path.iterdir())


def test_the_row_where_it_began():
    from diffjax import schedules, timetables

    table = timetables.uniform(schedules.discrete(schedules.linear_betas(100)), 4)
    finite = np.array([[True] * 4, [True, True, False, False]])
    ((k, why),) = batch._not_finite(np.zeros((2, 1)), finite, table, ["a", "b"])
    assert k == 1 and "of b is not finite from row 2 of 4 on (t = 50)" in why


def test_a_task_and_photographs_that_are_degraded_already(prior, prior_folder, tmp_path, capsys):
    """Small images are made larger, so that their block means are the small image again; nothing is scored but the fit."""
    small = np.random.default_rng(0).integers(110, 150, (2, 8, 8), np.uint8)
    (tmp_path / "small").mkdir()
    for n, pixels in enumerate(small):
        Image.fromarray(pixels).save(tmp_path / "small" / f"p{n}.png")
    options = "--task sr4-mean --degraded --noise 0 --method ddrm --steps 3 --samples 1 --devices 1".split()
    paths = ["--images", str(tmp_path / "small"), "--prior", str(prior_folder), "--out", str(tmp_path / "out")]
    assert restore.main([*options, *paths]) == 0
    out = tmp_path / "out" / "tiny"
    report = json.loads((out / "metrics.json").read_text())
    assert report["psnr"] is None and report["task"] == "sr4-mean" and report["degraded"]
    assert [e["name"] for e in report["images"]] == ["p0", "p1"] and report["misfit"] < 0.5
    compared = 0
    for n in range(2):
        blocks = png(out / "images" / f"p{n}.png").reshape(8, 4, 8, 4)
        whole = (blocks.min((1, 3)) > 0) & (blocks.max((1, 3)) < 255)  # nothing in it was clamped
        np.testing.assert_allclose(blocks.mean((1, 3))[whole], small[n][whole], atol=0.6)
        compared += whole.sum()
    assert compared > 0
    assert "misfit" in capsys.readouterr().out


def test_denoising_and_a_method_that_ignores_noise(prior_folder, tmp_path, capsys, monkeypatch):
    """The task is the picture itself with noise: what is measured lies at --noise of the truth, in [0, 1]."""
    monkeypatch.setattr(dj.methods.DPS, "noise", "ignored", raising=False)
    argv = "--task denoise --noise 0.1 --method dps --steps 2 --samples 1 --limit 2 --devices 1".split()
    assert restore.main([*argv, "--prior", str(prior_folder), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "tiny" / "metrics.json").read_text())
    assert report["task"] == "denoise" and report["noise"] == 0.1 and report["psnr"] > 0
    assert "note: dps has no model of noise, what --noise 0.1 adds is taken for the picture" in capsys.readouterr().out
    truth = zoo.bundled.images("fashion")[0][:4]
    ys, operators = tasks.measure("denoise", truth, 2 * 0.1)
    noise = (ys - truth) / 2
    assert noise.std() == pytest.approx(0.1, abs=4 * 0.1 / np.sqrt(2 * noise.size)) and operators[0].mask.all()


# --- what it can tell -----------------------------------------------------------------------------------------------


def test_list(capsys):
    assert restore.main(["--list"]) == 0
    said = capsys.readouterr().out
    for word in ("repaint", "half", "thick", "bundled:fashion", *zoo.names()):
        assert word in said


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        restore.main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:" in said
    for option in "images mask task noise degraded invert-mask prior method label cfg samples steps seed batch list".split():
        assert f"--{option}" in said


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory, prior_folder):
    """Files of all the wrong kinds."""
    folder = tmp_path_factory.mktemp("files")
    grey = np.full((32, 32), 128, np.uint8)
    save = lambda name, pixels: Image.fromarray(pixels).save(folder / name)
    save("good.png", np.arange(1024, dtype=np.uint8).reshape(32, 32))
    whole = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a picture")
    save("mask16.png", np.pad(np.full((8, 8), 255, np.uint8), 4))
    save("white.png", grey | 255)
    save("black.png", grey * 0)
    save("colour.png", np.stack([grey, grey // 2, grey], -1))
    (folder / "empty").mkdir()
    np.save(folder / "bytes.npy", grey)
    np.save(folder / "range.npy", grey.astype(np.float32))
    hidden = np.zeros((32, 32), np.float32)
    hidden[:, -1] = 1.5  # where the mask hides it
    np.save(folder / "hidden.npy", hidden)
    np.save(folder / "nan.npy", np.full((32, 32), np.nan, np.float32))
    np.save(folder / "shape.npy", np.zeros((3, 28, 28), np.float32))
    (folder / "cut.npy").write_bytes((folder / "range.npy").read_bytes()[:90])
    (folder / "file").touch()
    (folder / "mine").mkdir()
    (folder / "mine" / "letter.txt").touch()
    shutil.copytree(prior_folder, folder / "other")
    card = json.loads((folder / "other" / "card.json").read_text())
    card["config"]["blocks"] = 2
    (folder / "other" / "card.json").write_text(json.dumps(card))
    return folder


BAD = [
    ("--stpes 3", "did you mean '--steps'"),
    ("--sampels=3", "did you mean '--samples'"),
    ("extra", "unexpected argument 'extra'"),
    ("--steps three", "not a whole number"),
    ("--steps 0", "out of range"),
    ("--steps 1001", "1 to 1000"),
    ("--samples 0", "out of range"),
    ("--batch -2", "out of range"),
    ("--seed -1", "out of range"),
    ("--cfg 2", "give one with --label"),
    ("--cfg nan --label 1", "no scale"),
    ("--label ginger", "unknown label 'ginger'"),
    ("--label trouserz", "did you mean 'trouser'"),
    ("--label 10", "choose 0 to 9"),
    ("--label true --images FILES/good.png", "images with labels"),
    ("--method repiant", "did you mean 'repaint'"),
    ("--task deblurr", "did you mean 'deblur'"),
    ("--task deblur --mask half", "two measurements"),
    ("--task deblur --noise -1", "standard deviation >= 0"),
    ("--task deblur --method repaint", "RePaint needs a Mask, not Blur"),
    ("--task motion --degraded --images FILES/good.png", "is drawn by --seed"),
    ("--task deblur --degraded", "give --images"),
    ("--task deblur --method ddnm", "and --noise is 0.05: give --noise 0, or --method ddnm+"),
    ("--task deblur --noise 12.75", "Is it out of 255? Then give --noise 0.05"),
    ("--task sr4 --noise 1.5", "Is it out of 255?"),
    ("--task deblur --noise nan", "standard deviation >= 0"),
    ("--cache X --no-cache", "opposites"),
    ("--cache FILES/file", "cannot be written"),
    ("--noise 0.1", "goes with --task"),
    ("--degraded", "goes with --task"),
    ("--mask haf", "did you mean 'half'"),
    ("--mask FILES/none.png", "none.png does not exist"),
    ("--mask FILES/cut.png", "cannot be read"),
    ("--mask FILES/mask16.png", "resize the mask to 32x32"),
    ("--mask FILES/white.png", "nothing to fill"),
    ("--mask FILES/white.png --invert-mask", "nothing known"),
    ("--mask FILES/black.png", "nothing known"),
    ("--mask FILES/colour.png", "has colours"),
    ("--images FILES/none.png", "does not exist"),
    ("--images FILES/cut.png", "cannot be read"),
    ("--images FILES/text.png", "not an image"),
    ("--images FILES/empty", "has no images"),
    ("--images bundled:fashoin", "did you mean 'fashion'"),
    ("--images FILES/none.npy", "does not exist"),
    ("--images FILES/cut.npy", "cannot be read"),
    ("--images FILES/bytes.npy", "give floating numbers"),
    ("--images FILES/shape.npy", "(N, 32, 32, 1)"),
    ("--images FILES/range.npy", "span [128, 128]: give finite numbers in [-1, 1]"),
    ("--images FILES/hidden.npy", "span [0, 1.5]"),
    ("--images FILES/nan.npy", "give finite numbers"),
    ("--prior FILES/other", "another architecture"),
    ("--prior FILES/empty", "holds no prior"),
    ("--prior nothing-like-it", "unknown prior"),
    ("--out FILES/file", "is a file"),
    ("--out FILES/mine", "has other files in it"),
    ("--out /proc/nowhere/out", "cannot be written"),
]


@pytest.mark.parametrize("line, said", BAD, ids=[line for line, _ in BAD])
def test_bad_input(line, said, cached, files, prior_folder, tmp_path, capsys):
    """One line on stderr, exit code 2, and nothing left behind; nothing is compiled before it is said."""
    argv = line.replace("FILES", str(files)).split()
    argv += ["--prior", str(prior_folder)] * ("--prior" not in line) + ["--out", str(tmp_path / "out")] * ("--out" not in line)
    before = sorted(files.rglob("*"))
    assert restore.main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir()) and sorted(files.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ["fashion32", "fruits32"]),
        ("--label true", ["fashion32", "fruits32"]),
        ("--label sneaker", ["fashion32"]),
        ("--images bundled:fruits", ["fruits32"]),
        ("--images photos", ["fashion32"]),
        ("--prior mine", ["mine"]),
    ],
)
def test_which_priors_run(line, expected):
    assert restore.priors_of(restore.parser().parse(line.split())) == expected


def test_both_priors_leave_their_pictures(monkeypatch, tmp_path, prior, capsys):
    """Each prior's results in a place of its own; here one tiny prior stands in for both."""
    monkeypatch.setattr(zoo, "load", lambda name: replace(prior, name=name))
    out = tmp_path / "out"
    assert restore.main(["--samples", "1", "--steps", "5", "--limit", "2", "--out", str(out)]) == 0
    places = ["fashion32", "fruits32"]
    written = [json.loads((out / place / "metrics.json").read_text())["prior"] for place in places]
    assert written == places and all((out / place / "grid.png").is_file() for place in places)
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == set(places)
    said = capsys.readouterr().out
    assert "fashion32/grid.png" in said and "fruits32/grid.png" in said
