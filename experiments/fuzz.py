"""Damaged and hostile files against the readers of checkpoints and pictures: ``python -m experiments.fuzz --minutes 10``.

Small whole files of every kind (torch's two formats, npz, safetensors, cards, configurations, pictures) are changed at
random: bytes, numbers, opcodes, lengths, values of JSON; archives are packed again, so that what is changed within is read.
Whatever a file is, a reader gives arrays, or a ValueError of one printable line; within five seconds; with no more memory
than 1 GB and four times the file. What breaks that is kept in --keep with its traceback, and the exit code is 1. The seed is
printed: the same seed makes the same files.
"""

from __future__ import annotations

import copy
import io
import json
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np

from . import fuzz_images
from .tools.study import Parser, run

SECONDS, BYTES = 5, 2**30
NUMBERS = (0, 1, 2, 4, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
VALUES = (
    None, True, False, 0, -1, 1, 3, 7, 10**5, 10**9, 10**18, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x",
    "\ud800", "../../x", "a\nb\x1b[31m", "%s{}", [], {}, [None], [1, "a"], [[1]], {"a": 1}, [1] * 50, [10**18], "1,2",
    "linear", "eps", "DDPMScheduler", "CMStochasticIterativeScheduler",
)  # fmt: skip
OPCODES = b"().0123FIJKLMNPQRSTUVXabcdeghijlopqrstu}]" + bytes(range(0x80, 0x99))  # of all protocols


# --- whole files --------------------------------------------------------------------------------------------------------


def state_dict() -> dict:
    """Arrays of a UNet2DModel with two levels of width 4, under the names of today."""
    from diffjax.convert import ddpm, strict
    from diffjax.nets import DDPMUNet

    net = DDPMUNet(out_channels=3, width=4, groups=2, multipliers=(1, 1), blocks=1)
    shapes = strict.shapes(net, *strict.image_inputs(net, 2, 3))
    wanted = strict.expected(strict.used(ddpm.table(net), shapes), shapes)
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in wanted.items()}


def _text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def _whole(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


def pickled(state) -> bytes:
    """The pickle of a state dict as torch.save writes it, protocol 2."""
    out = [b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01("]
    for key, (name, a) in enumerate(state.items()):
        strides = [s // a.itemsize for s in np.ascontiguousarray(a).strides]
        out += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", _text("storage"), b"ctorch\nHalfStorage\n",
                _text(str(key)), _text("cpu"), _whole(a.size), b"tQK\x00(", *map(_whole, a.shape), b"t(",
                *map(_whole, strides), b"t\x89ccollections\nOrderedDict\n)RtR"]  # fmt: skip
    return b"".join([*out, b"u."])


def wholes() -> dict[str, bytes]:
    """{name: bytes} of whole files, small."""
    from safetensors.numpy import save

    few = {k: v for k, v in list(state_dict().items())[:6]}
    zipped, packed, plain = io.BytesIO(), io.BytesIO(), io.BytesIO()
    members = {"archive/data.pkl": pickled(few), **{f"archive/data/{n}": a.tobytes() for n, a in enumerate(few.values())}}
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    np.savez_compressed(packed, **few, config=np.array("text"))
    np.savez(plain, **few)
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    keys = b"\x80\x02](" + b"".join(_text(str(n)) for n in range(len(few))) + b"e."
    stored = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in few.values())
    legacy = magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickled(few) + keys + stored
    return {"zip.pt": zipped.getvalue(), "legacy.pth": legacy, "packed.npz": packed.getvalue(), "plain.npz": plain.getvalue(),
            "s.safetensors": save(few)}  # fmt: skip


UNET = {"_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": 4, "block_out_channels": [4, 4],
        "center_input_sample": False, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "downsample_padding": 0,
        "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 1, "mid_block_scale_factor": 1,
        "norm_eps": 1e-6, "norm_num_groups": 2, "out_channels": 3, "sample_size": 16, "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
             "clip_sample": True, "num_train_timesteps": 50, "prediction_type": "epsilon", "predict_epsilon": True,
             "variance_type": "fixed_small"}  # fmt: skip


# --- changes ------------------------------------------------------------------------------------------------------------


def changed(data: bytes, rng) -> bytes:
    """A few bytes changed, cut out, doubled, or replaced by a number that a length could be."""
    data = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 16]))):
        at = int(rng.integers(len(data) + 1))
        kind = rng.integers(7)
        if kind == 0:
            data[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 2:
            data[at:at] = data[at : at + int(rng.integers(1, 200))]
        elif kind == 3:
            size = int(rng.choice([1, 2, 4, 8]))
            number = NUMBERS[int(rng.integers(len(NUMBERS)))] % 256**size
            data[at : at + size] = number.to_bytes(size, "little")
        elif kind == 4:
            data[at : at + 1] = bytes([OPCODES[int(rng.integers(len(OPCODES)))]])
        elif kind == 5:
            other = int(rng.integers(len(data) + 1))
            data[at:at] = data[other : other + int(rng.integers(1, 60))]
        else:
            data = data[: max(at, 1)]
    return bytes(data)


def repacked(data: bytes, rng) -> bytes:
    """An archive with one member changed (more often the pickle or a head than numbers), its checksums right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    chosen = names[0] if rng.integers(2) else names[int(rng.integers(len(names)))]
    data = members[chosen]
    members[chosen] = changed(data[:300], rng) + data[300:] if rng.integers(2) else changed(data, rng)
    if rng.integers(8) == 0:
        members[names[int(rng.integers(len(names)))] + "x"] = members.pop(chosen)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if rng.integers(3) == 0 else zipfile.ZIP_STORED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return out.getvalue()


def headed(data: bytes, rng) -> bytes:
    """A safetensors file whose head is changed and has the right length."""
    length = int.from_bytes(data[:8], "little")
    try:
        head = json.dumps(altered(json.loads(data[8 : 8 + length]), rng)).encode(errors="surrogatepass")
    except ValueError:
        head = changed(data[8 : 8 + length], rng)
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


def altered(value, rng):
    """JSON with values replaced, dropped, added or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.choice([1, 1, 2, 5]))):
        at = value
        while isinstance(at, dict | list) and at:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            key = keys[int(rng.integers(len(keys)))]
            if not isinstance(at[key], dict | list) or not at[key] or rng.integers(2):
                break
            at = at[key]
        if not isinstance(at, dict | list) or not at:
            return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        kind = rng.integers(6)
        if kind == 0:
            del at[key]
        elif kind == 1 and isinstance(at, dict):
            at[f"x{rng.integers(9)}"] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        elif kind == 2 and isinstance(at[key], int | float) and not isinstance(at[key], bool):
            at[key] = at[key] * int(rng.choice([-1, 2, 3, 1000])) + int(rng.integers(3))
        else:
            at[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return value


def file_case(kinds: dict, rng) -> tuple[str, bytes]:
    """(name, bytes) of a changed checkpoint."""
    name = list(kinds)[int(rng.integers(len(kinds)))]
    data, kind = kinds[name], rng.integers(3)
    if kind and name.endswith((".pt", ".npz")):
        return name, repacked(data, rng)
    if kind and name.endswith(".safetensors"):
        return name, headed(data, rng)
    if kind == 1 and name.endswith(".pth"):  # mostly what is before the numbers
        return name, changed(data[:1500], rng) + data[1500:]
    return name, changed(data, rng)


# --- what must hold -----------------------------------------------------------------------------------------------------


class Hangs(BaseException):
    pass


def _resident(peak=False) -> int:
    name = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(name)), 0)


def broken(reader, size: int) -> str:
    """What a reader breaks of the promises, "" where it keeps them."""

    def late(*_):
        raise Hangs

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    except OSError:
        pass
    before, began, said = _resident(), time.process_time(), ""
    previous = signal.signal(signal.SIGVTALRM, late)  # of the process's own time: other programs do not count
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader()
    except ValueError as error:
        text = str(error)
        if not text or len(text) > 2000 or not text.isprintable():
            said = f"a message that is no printable line: {text[:300]!r} ({len(text)} characters)"
        elif "MemoryError" in text:
            said = f"memory for a number: {text[:300]}"
    except Hangs:
        said = f"more than {2 * SECONDS} s\n{traceback.format_exc()}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        said = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    seconds, more = time.process_time() - began, _resident(peak=True) - before
    if not said and seconds > SECONDS:
        said = f"{seconds:.1f} s"
    if not said and more > BYTES + 4 * size:
        said = f"{more >> 20} MB for a file of {size} bytes"
    return said


def one_file(folder: Path, kinds, rng):
    """(name, bytes, what was broken) of one changed checkpoint."""
    from diffjax.convert import files

    name, data = file_case(kinds, rng)
    file = folder / name
    file.write_bytes(data)
    return name, data, broken(lambda: files.read(file), len(data))


def one_image(folder: Path, kinds, rng):
    """The same of one changed picture."""
    name, data = fuzz_images.case(kinds, rng, changed)
    file = folder / name
    file.write_bytes(data)
    return name, data, broken(lambda: fuzz_images.read(file), len(data))


def one_json(folder: Path, rng):
    """The same of one changed description: a scheduler's, a network's, a card's, given settings; without building networks."""
    from diffjax import wording
    from diffjax.cli import config as configuration
    from diffjax.convert import ddpm
    from diffjax.zoo import network, parents, schedulers

    given = {"image_size": 16, "num_heads": 2, "diffusion_steps": 100, "noise_schedule": "cosine",
             "attention_resolutions": "8,4", "channel_mult": "1,2", "rescale_timesteps": True}  # fmt: skip
    card = json.loads((Path(configuration.__file__).parents[1] / "zoo" / "fashion32" / "card.json").read_text())["config"]
    readers = {"scheduler": (SCHEDULER, lambda c: schedulers.schedule({"T": 9, "schedule": "linear", **schedulers.read(c)})),
               "unet": (UNET, ddpm.from_config), "settings": (given, parents.ours), "card": (card, network.build_schedule),
               "run": (card, lambda c: configuration.from_dict(c, "config.json"))}  # fmt: skip
    name = list(readers)[int(rng.integers(len(readers)))]
    base, reader = readers[name]
    text = json.dumps(altered(base, rng))
    data = changed(text.encode(), rng) if rng.integers(4) == 0 else text.encode()
    file = folder / f"{name}.json"
    file.write_bytes(data)

    def read():
        value = wording.read_json(file)
        return reader(value) if isinstance(value, dict) else None

    return file.name, data, broken(read, len(data))


def one_prior(folder: Path, state, rng):
    """The same of a folder laid out like the hub's with one thing changed, read as a prior: networks are built."""
    from safetensors.numpy import save

    from diffjax import zoo

    parts = {"config.json": UNET, "scheduler_config.json": SCHEDULER}
    which = ["config.json", "scheduler_config.json", "names"][int(rng.integers(3))]
    if which == "names":
        names = list(state)
        for _ in range(int(rng.integers(1, 4))):
            old = names[int(rng.integers(len(names)))]
            new = old.replace("0", str(NUMBERS[int(rng.integers(len(NUMBERS)))]), 1) if rng.integers(2) else "module." + old
            state = {new if k == old else k: v for k, v in state.items()}
    else:
        parts[which] = altered(parts[which], rng)
    for name, value in parts.items():
        (folder / name).write_text(json.dumps(value))
    data = save(state)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(data)
    shown = json.dumps(parts if which != "names" else list(state)).encode()
    return "prior.json", shown, broken(lambda: zoo.load(folder), len(data))


def main(argv=None) -> int:
    import tempfile

    parser = Parser("experiments.fuzz", __doc__)
    parser.add_argument("--minutes", type=float, default=10, help="(default 10)")
    parser.add_argument("--seed", type=int, help="of the changes (default: the time)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for what breaks a promise")
    options = parser.parse(argv)
    seed = int(time.time()) if options.seed is None else options.seed
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, 64 * 2**30))  # a fault of ours does not take the machine with it
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    kinds, images, state, count, found, end = (
        wholes(),
        fuzz_images.wholes(),
        state_dict(),
        0,
        set(),
        time.time() + 60 * options.minutes,
    )
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        while time.time() < end:
            rng = np.random.default_rng([seed, count])
            at = count % 40
            name, data, said = one_prior(folder, state, rng) if at == 0 else (
                one_json(folder, rng) if at % 4 == 1 else one_image(folder, images, rng) if at % 4 == 2
                else one_file(folder, kinds, rng))  # fmt: skip
            count += 1
            key = said.strip().splitlines()[-1][:120] if said else ""
            if said and key not in found:
                found.add(key)
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{seed}-{count - 1}-{name}").write_bytes(data)
                (options.keep / f"{seed}-{count - 1}.txt").write_text(said)
                print(f"{count - 1} {name}: {key}", flush=True)
    print(f"{count} files, {len(found)} kinds of faults" + (f", kept in {options.keep}" if found else ""))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(run(main))
