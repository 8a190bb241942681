"""What programs leave behind: nothing of others is touched, what is finished is kept, and signals end them in time."""

import errno
import json
import os
import signal
from pathlib import Path

import interrupts
import numpy as np
import pytest
import tiny_prior
from PIL import Image

from diffjax import batch, zoo
from diffjax.cli import evaluate_prior, export, images, lock, options, outputs, restore, restoring, sample, train, training_run
from diffjax.cli.errors import UserError

SETTINGS = {"place": "p", "seed": 1, "boxes": [("apple", 0.1, 0.2)]}  # which JSON makes a list


def write(output, *names):
    output.begin([f"p/{name}" for name in names], SETTINGS, len(names))
    for name in names:
        file = output.folder / "p" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        outputs.write_bytes(file, name.encode())
        output.finish("p", {"name": name})


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file() and p.name[0] != ".")


def test_links_and_the_current_folder(tmp_path, monkeypatch):
    """The link stays a link and the shell stays in its folder: what is written is found through either."""
    real = tmp_path / "disk" / "real"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    with outputs.Output(outputs.check_writable(tmp_path / "link")) as output:
        write(output, "a")
    assert (tmp_path / "link").is_symlink() and tree(real) == ["p/a"]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    number = os.stat(".").st_ino
    with outputs.Output(outputs.check_writable(".")) as output:
        write(output, "b")
    assert os.stat(here).st_ino == number and tree(".") == ["p/b"]


def test_notes_of_mine_stay_and_old_results_go(tmp_path):
    for names in (["a", "b"], ["b", "c"]):
        with outputs.Output(outputs.check_writable(tmp_path / "o")) as output:
            write(output, *names)
        (tmp_path / "o" / "p" / "notes.txt").write_text("precious")
    assert tree(tmp_path / "o") == ["p/b", "p/c", "p/notes.txt"]
    (tmp_path / "o" / "p" / "d").write_text("mine")
    with pytest.raises(UserError, match="p/d is not ours and in the way"), outputs.Output(tmp_path / "o") as output:
        write(output, "d")
    assert (tmp_path / "o" / "p" / "d").read_text() == "mine" and "p/b" in tree(tmp_path / "o")
    # a list that somebody else wrote does not reach out of the folder
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "o" / outputs.MANIFEST).write_text(
        json.dumps({"files": ["../thesis.tex", str(tmp_path / "thesis.tex"), "p/b"]})
    )
    with outputs.Output(tmp_path / "o") as output:
        write(output, "e")
    assert (tmp_path / "thesis.tex").exists() and "p/b" not in tree(tmp_path / "o")


def test_what_is_finished_is_kept_and_resumed(tmp_path, monkeypatch, capsys):
    """A disk that is full in the middle, and then a change of mind."""
    out = tmp_path / "o"
    with pytest.raises(outputs.Stopped, match=r"1 of 2 are finished in .*unfinished.*--resume") as error:
        with outputs.Output(out) as output:
            output.begin(["p/a", "p/b"], SETTINGS, 2)
            outputs.write_bytes(output.folder / "a", b"a")
            output.finish("p", {"name": "a"})
            raise OSError(errno.ENOSPC, "No space left on device")
    assert "No space left" in str(error.value) and tree(out) == ["unfinished/a", "unfinished/journal.jsonl"]
    with pytest.raises(UserError, match="was made with seed 1, not 2"), outputs.Output(out, resume=True) as output:
        output.begin([], SETTINGS | {"seed": 2}, 1)
    (out / "unfinished" / "journal.jsonl").open("a").write('{"place": "p", "done": {"na')  # a kill cut the line
    with outputs.Output(outputs.check_writable(out), resume=True) as output:
        assert output.begin(["p/a"], SETTINGS, 1) == [{"name": "a"}]
    assert tree(out) == ["a"]
    with pytest.raises(outputs.Stopped), outputs.Output(out) as output:
        write(output, "x")
        raise ValueError("diverges")
    with outputs.Output(out) as output:
        write(output, "y")
    assert "1 results that a stopped run left" in capsys.readouterr().out and tree(out) == ["p/y"]
    monkeypatch.setattr(outputs, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    with pytest.raises(UserError, match="Read-only"), outputs.Output(tmp_path / "new" / "o") as output:
        write(output, "z")
    assert not (tmp_path / "new").exists(), "nothing was finished, so nothing is left"


def test_one_process_at_a_time(tmp_path):
    with outputs.Output(tmp_path) as output:
        write(output, "a")
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"), outputs.Output(tmp_path) as other:
            write(other, "b")
        assert (output.folder / "p" / "a").exists()
    (tmp_path / lock.NAME).write_text("left by a kill")
    lock.Lock(tmp_path).take().release()
    assert not (tmp_path / lock.NAME).exists()


def test_room_and_names(tmp_path):
    with pytest.raises(UserError, match="has room for"):
        outputs.check_room(tmp_path / "not" / "yet", 10**18, 1)
    long = images._unique(["ä" * 250, "ä" * 251, "a\nb/c", "a", "a", "a-2"])
    assert len(set(long)) == 6 and all(len(f".{name}-mean.png.part".encode()) < 255 for name in long)
    assert long[2:] == ["a_b_c", "a", "a-2", "a-2-2"]


@pytest.mark.parametrize("number", [options.MOST_DEVICES + os.cpu_count() + 1, 10**6])
def test_devices_that_cannot_be(number, capsys):
    assert restore.main(["--devices", str(number)]) == 2
    assert "more than there can be" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["channels 0", "width 0", "heads 0", "multipliers ,", "seed -1", "ema 2", "ema nan",
                                  "dropout 1", "label-dropout 5", "lr -1", "lr nan", "lr inf", "clip 0",
                                  "batch -3", "keep 0"])  # fmt: skip
def test_numbers_of_a_training(line, tmp_path, capsys):
    name, value = line.split()
    assert train.main(["default", "--data", "x", f"--{name}={value}", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"--{name}" in said and "out of range" in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


# --- whole programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program, line", [
    (restore, "--images LONG"), (restore, "--prior LONG"), (restore, "--mask LONG/a.png"), (restore, "--out LONG"),
    (restore, "--images LONG.npy"), (train, "LONG"), (train, "default --data LONG"), (sample, "--prior LONG.pt"),
    (export, "LONG x"), (evaluate_prior, "LONG"), (restore, "--classifier LONG.pt --label 1"),
])  # fmt: skip
def test_questions_about_files_that_fail_are_one_line(program, line, capsys):
    """A name that no file system has: pathlib raises, as it does in a folder that may not be read."""
    assert program.main(line.replace("LONG", "/tmp/" + 300 * "a").split()) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and "aaa" in said[0] and "too long" in said[0]


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return tiny_prior.write(tmp_path_factory.mktemp("zoo") / "tiny")


def test_a_folder_of_photographs_its_masks_and_a_stop_in_the_middle(prior, tmp_path, capsys, monkeypatch):
    """Each mask goes its picture's way, results are there one by one, and the rest is done by --resume: the same pictures."""
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for name, (h, w) in {"a": (32, 32), "b": (64, 96), "c": (40, 32)}.items():
        Image.fromarray(rng.integers(0, 256, (h, w), np.uint8)).save(tmp_path / "photos" / f"{name}.png")
        known = np.full((h, w), 255, np.uint8)
        known[h // 2 :] = 0
        Image.fromarray(known).save(tmp_path / "masks" / f"{name}_mask.png")
    line = f"--images {tmp_path}/photos --mask {tmp_path}/masks --prior {prior} --method ddnm --steps 2 --samples 1 --batch 1"
    argv = [*line.split(), "--devices", "1", "--out"]
    assert restore.main([*argv, str(tmp_path / "whole")]) == 0
    assert "mask b_mask.png, as its picture: 96x64 -> centre crop 64x64 -> resized to 32x32" in capsys.readouterr().out
    save, count = images.save_png, []

    def failing(path, image):
        count.append(path)
        if len(count) > 2:
            raise UserError(f"{path} cannot be written (No space left on device)")
        save(path, image)

    monkeypatch.setattr(images, "save_png", failing)
    out = tmp_path / "out"
    assert restore.main([*argv, str(out)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 3 are finished" in said and len(list((out / "unfinished" / "tiny" / "images").iterdir())) == 2
    monkeypatch.setattr(images, "save_png", save)
    assert restore.main([*argv, str(out), "--resume"]) == 0
    assert "2 of 3 images of tiny were done before" in capsys.readouterr().out
    for name in "abc":
        same = [(tmp_path / place / "tiny" / "images" / f"{name}.png").read_bytes() for place in ("whole", "out")]
        assert same[0] == same[1]
    both = [json.loads((tmp_path / place / "tiny" / "metrics.json").read_text())["images"] for place in ("whole", "out")]
    assert both[0] == both[1] and not (out / "unfinished").exists()
    assert restore.main([*argv, str(out), "--resume"]) == 0 and "is complete" in capsys.readouterr().out
    os.remove(tmp_path / "masks" / "c_mask.png")
    assert restore.main([*argv, str(out)]) == 2 and "no mask called c" in capsys.readouterr().err


def test_one_image_that_fails_does_not_lose_the_others(prior, tmp_path, capsys, monkeypatch):
    """A photograph that cannot be read, one that is too small to be measured, and a restoration that is not finite."""
    rng = np.random.default_rng(0)
    for name, side in (("a", 32), ("b", 32), ("d", 8)):
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:90])
    line = f"--images {tmp_path} --prior {prior} --steps 2 --samples 1 --batch 1 --devices 1 --task denoise --degraded"
    real = batch._not_finite
    broken = lambda x, finite, table, names: real(x * np.nan if names[0] == "b" else x, finite, table, names)
    monkeypatch.setattr(batch, "_not_finite", broken)
    out = tmp_path / "out"
    assert restore.main([*line.split(), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    for what in (
        "c.png cannot be read",
        "d is 8x8",
        "restoration of b is not finite",
        "3 of the images could not be restored",
    ):
        assert what in said
    assert tree(out) == ["tiny/grid.png", "tiny/images/a.png", "tiny/metrics.json"]
    metrics = json.loads((out / "tiny" / "metrics.json").read_text())
    assert [one["name"] for one in metrics["images"]] == ["a"] and len(metrics["failed"]) == 3
    assert restore.main([*line.split(), "--out", str(out), "--resume"]) == 1
    assert "is finished, and 3 of the images could not be restored" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").unlink()
    (tmp_path / "d.png").unlink()
    assert restore.main([*line.split(), "--out", str(out)]) == 2  # nothing is left to be done
    assert capsys.readouterr().err.startswith("error: ") and len(tree(out)) == 3


def test_what_was_measured_is_not_resized_and_its_misfit_is_judged(prior, tmp_path, capsys):
    Image.fromarray(np.full((24, 40), 100, np.uint8)).save(tmp_path / "a.png")  # smaller than the prior's 32x32
    line = f"--images {tmp_path}/a.png --prior {prior} --degraded --samples 1 --steps 2 --devices 1 --out {tmp_path}/out"
    assert restore.main([*line.split(), "--task", "deblur"]) == 2
    assert "is 40x24, and with --degraded what was measured is not resized" in capsys.readouterr().err
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)  # no blur makes such a picture
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert restore.main([*line.split(), "--task", "deblur", "--noise", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "taken as mirrored" in said and "miss what was measured" in said
    assert restore.main([*line.split(), "--task", "sr4", "--border", "zero"]) == 2
    assert "--border zero is about blurs" in capsys.readouterr().err


def test_an_array_that_may_be_in_another_range_is_said(prior, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.full((32, 32), 0.25, np.float32))
    line = f"--images {tmp_path}/x.npy --prior {prior} --method ddnm --samples 1 --steps 2 --devices 1 --out {tmp_path}/out"
    assert restore.main(line.split()) == 0
    assert "if [0, 1] was meant, give 2 x - 1" in capsys.readouterr().out


def test_a_signal_between_rows_ends_it_in_two_seconds(prior, tmp_path):
    """While rows run, with an image finished: it stays, and its place is said."""
    (tmp_path / "tiny").symlink_to(prior)
    done = tmp_path / "out" / "unfinished" / "journal.jsonl"
    one = lambda: done.exists() and '"done"' in done.read_text()
    process = interrupts.start(interrupts.RESTORE.replace("--limit 8", "--limit 32"), tmp_path)
    code, seconds, said = interrupts.end(process, signal.SIGTERM, one)
    assert code == 143 and seconds < 4, (code, seconds, said)  # 2, on a machine that has nothing else to do
    assert "are finished in" in said and "Traceback" not in said
    assert not (tmp_path / "out" / lock.NAME).exists() and len(list(tmp_path.rglob("fashion-*.png"))) >= 1


def test_a_training_that_is_interrupted_before_it_begins(prior, tmp_path):
    """Ctrl-C while jax is loaded or compiles: one line, 130, nothing is said to be saved."""
    interrupts.prepare(tmp_path)
    made = lambda: (tmp_path / "out").exists()
    code, seconds, said = interrupts.end(interrupts.start(interrupts.TRAIN, tmp_path), signal.SIGINT, made)
    assert code == 130 and seconds < 4 and "saved step" not in said and "Traceback" not in said, said


@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "samples_0000020.png"])
def test_a_training_overwrites_nobody(name, tmp_path):
    (tmp_path / name).write_text("mine")
    run = object.__new__(training_run.Run)
    run.folder = tmp_path
    with pytest.raises(ValueError, match=f"has a {name} that no training run wrote"):
        run._claim_folder()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


def test_tiles_cover_and_weigh_one():
    """A network of single pixels says of the whole what it says of each; one of tiles, a mean of what the tiles say."""
    import types

    from diffjax.cli import tiles

    x = np.random.default_rng(0).standard_normal((13, 21, 2)).astype(np.float32)
    pixels = types.SimpleNamespace(apply=lambda params, x, t: params * x + t)
    found = tiles.Tiled(pixels, 8, 2).apply(2.0, x, 1.0)
    np.testing.assert_allclose(found, 2 * x + 1, atol=1e-5)
    assert tiles.starts(21, 8, 2).tolist() == [0, 4, 9, 13] and tiles.starts(8, 8, 2).tolist() == [0]
    mask = np.ones((13, 21))
    mask[2:9, 3:6] = 0
    tiles.check_holes(mask, 8, "a")
    mask[2:6, 3:7] = 0
    with pytest.raises(UserError, match="holds a square of 4x4"):
        tiles.check_holes(mask, 8, "a")


def test_a_picture_larger_than_the_prior_keeps_its_size(prior, tmp_path, capsys):
    """Its block means are what was measured, at every pixel, whichever tiles lie over it."""
    small = np.random.default_rng(0).integers(115, 140, (9, 14), np.uint8)
    Image.fromarray(small).save(tmp_path / "a.png")
    line = (
        f"--images {tmp_path}/a.png --prior {prior} --degraded --task sr4-mean --noise 0 --method ddrm --samples 1 --steps 2"
    )
    assert restore.main([*line.split(), "--devices", "1", "--out", str(tmp_path / "out")]) == 0
    assert "a: restored at 56x36 in 2x2 overlapping tiles of 32x32" in capsys.readouterr().out
    x = np.asarray(Image.open(tmp_path / "out" / "tiny" / "images" / "a.png")).astype(float).reshape(9, 4, 14, 4)
    whole = (x.min((1, 3)) > 0) & (x.max((1, 3)) < 255)  # nothing in it was clamped
    assert whole.any()
    np.testing.assert_allclose(x.mean((1, 3))[whole], small[whole], atol=0.6)


def test_a_resumed_run_must_have_the_same_settings_of_its_prior(prior):
    """They may change the pictures, and none of the weights."""
    of = lambda words: restoring._depends(restore.parser().parse([f"--prior={prior}", *words]), zoo.load(prior), None)
    plain, other, boxed = of([]), of(["--prior-config", "schedule=linear"]), of(["--boxes", "apple:0.1,0.1,0.5,0.5"])
    assert other["prior_config"] == {"schedule": "linear"} and other | {"prior_config": {}} == plain
    assert (
        boxed["boxes"] != plain["boxes"] and json.loads(json.dumps(boxed)) != boxed
    )  # why settings are kept as JSON has them
