"""Reading checkpoints: .safetensors, .npz, torch's zip and older formats, and shards with an index; without torch.

A checkpoint is data. What a file is follows from what is in it, not from its name (``kinds``); a pickle is interpreted by
``pickles``, which calls nothing; which of several state dicts is taken is said (``unwrap``). Work and memory follow from the
size of the file. Whatever happens ends in one line that names the file: this is the border, and it has one ``except``.
"""

from __future__ import annotations

import ast
import io
import math
import mmap
import re
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..wording import printable, read_json, some
from . import kinds, unwrap
from .pickles import Machine, Refused, Tensor

# torch's names of the types of storages and of tensors
STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
    "BFloat16Storage": jnp.bfloat16, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128, "UntypedStorage": np.uint8,
}  # fmt: skip
TYPES = {
    "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64, "float32": np.float32, "float64": np.float64,
    "float16": np.float16, "bfloat16": jnp.bfloat16, "int64": np.int64, "int32": np.int32, "int16": np.int16,
    "int8": np.int8, "uint8": np.uint8, "bool": np.bool_, "complex64": np.complex64, "complex128": np.complex128,
    **{name: getattr(ml_dtypes, name) for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")},
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of files older than torch 1.6
TORCH = (".pt", ".pth", ".ckpt", ".bin")
SLACK = 2**28  # bytes that may be unpacked besides twice the file
INDEX = ".index.json"


def read(path, notes: list | None = None):
    """{name: array} of a checkpoint.

    notes: gets a line for whatever was chosen, left out or cut off: the averaged weights of several, a prefix of all names.
    ValueError, in one line, if the file is missing, damaged, or holds something else: what, and what to do.
    """
    notes = [] if notes is None else notes
    return _guarded(Path(path), lambda path, head, kind: _read(path, head, kind, notes))


def read_torch(path):
    """What torch.save wrote: tensors as arrays, in dicts and lists as they were. ValueError as :func:`read`."""
    return _guarded(Path(path), lambda path, head, kind: _whole(path, kind))


def write(path, state):
    """Save {name: array} as .safetensors."""
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)


def _guarded(path, reader):
    """The border."""
    size = kinds.regular(path)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        if other := kinds.instead(head):
            raise Refused(other)
        kind = kinds.kind(path, head)
        if not kind and path.suffix not in (".safetensors", ".npz", *TORCH):
            raise Refused(
                f"cannot read {printable(path.suffix or 'this', 20)} files; use .safetensors, .npz or {', '.join(TORCH)}"
            )
        if not size:
            raise ValueError("the file is empty")
        return reader(path, head, kind)
    except Refused as error:
        text = printable(error)
        raise ValueError(f"{path}{'' if text.startswith('is ') else ':'} {text}") from error
    except Exception as error:  # whatever a damaged or hostile file leads to, among it MemoryError and RecursionError
        text = printable(error, 200) or type(error).__name__
        raise ValueError(f"{path}: damaged, truncated or not a checkpoint ({text}): fetch or copy it again") from error


def _read(path, head, kind, notes):
    if path.name.endswith(INDEX) and kind == "json":
        return _shards(path, notes)
    if kind == "json":
        raise Refused("is a text of JSON, not a file of weights: give the file that lies beside it")
    if kind == "safetensors" or (not kind and path.suffix == ".safetensors"):
        return unwrap.bare(_safetensors(path), _is_array, notes)
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                return unwrap.bare(_npz(_Members(path, archive), notes), _is_array, notes)
            return _Torch(_Members(path, archive)).state_dict(notes)
    with open(path, "rb") as file:
        return _Legacy(file).state_dict(notes)


def _whole(path, kind):
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            return _Torch(_Members(path, archive)).everything()
    with open(path, "rb") as file:
        return _Legacy(file).everything()


def _is_array(value):
    return isinstance(value, Tensor | np.ndarray)


# --- safetensors, shards, npz -------------------------------------------------------------------------------------------


def _safetensors(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def _shards(path, notes):
    """The arrays of all the files that an index names; they lie beside it and nowhere else."""
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise Refused("is an index without a weight_map: fetch it again")
    names = list(dict.fromkeys(str(name) for name in places.values()))
    if bad := [name for name in names if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(INDEX)]:
        raise Refused(f"names the file {printable(bad[0], 60)!r}: shards must lie beside their index")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise Refused(f"names {some(missing, 3)}, which {'is' if len(missing) == 1 else 'are'} not there: fetch all shards")
    state, found = {}, {}
    for name in names:
        state |= (found := _guarded(path.parent / name, lambda path, head, kind: _read(path, head, kind, notes)))
    if lacking := [name for name in places if name not in state]:
        raise Refused(f"promises {some(lacking, 3)}, which no shard has: fetch them again (found {some(found, 2)})")
    notes.append(f"joined {len(names)} shards")
    return state


class _Members:
    """The members of an archive: what is unpacked in all is bounded by the size of the file."""

    def __init__(self, path, archive):
        self.archive, self.left = archive, 2 * path.stat().st_size + SLACK
        self.names = archive.namelist()

    def take(self, name) -> int:
        """The bytes of a member, which are now spent."""
        size = self.archive.getinfo(name).file_size
        self.left -= size
        if self.left < 0:
            raise Refused(f"unpacks to far more than its own size ({printable(name, 60)}: {size:,} bytes): no checkpoint does")
        return size

    def read(self, name) -> bytes:
        self.take(name)
        return self.archive.read(name)


def _npz(members, notes):
    state, other = {}, []
    for name in members.names:
        if name.endswith("/"):
            continue
        key = name.removesuffix(".npy")
        array = _npy(members, name) if name.endswith(".npy") else "no array"
        if isinstance(array, str):
            other.append(f"{printable(key, 40)} ({array})")
        else:
            state[key] = array
    if other:
        notes.append(f"left out {some(other, 4, 60)}")
    return state


def _npy(members, name):
    """The array of a member, or what it is instead in words. Its header promises no more than the member holds."""
    size = members.take(name)
    with members.archive.open(name) as file:
        if file.read(6) != b"\x93NUMPY":
            return "no array"
        major = file.read(2)[0]
        length = struct.unpack("<H" if major == 1 else "<I", file.read(2 if major == 1 else 4))[0]
        if length > 10_000:
            return "a header of 10 kB or more"
        header = ast.literal_eval(file.read(length).decode("utf-8" if major == 3 else "latin1").strip())
        shape, dtype = header["shape"], np.dtype(header["descr"])
        if dtype.kind not in "fiubc":
            return {"O": "Python objects", "V": f"of type {dtype}, which numpy cannot name: save float32"}.get(
                dtype.kind, f"of type {printable(dtype, 40)}")  # fmt: skip
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} has no shape")
        count = math.prod(shape)
        if count * dtype.itemsize > size:
            raise ValueError(f"{name} promises {count:,} numbers and holds fewer")
        raw = file.read(count * dtype.itemsize)
        array = np.frombuffer(raw, dtype, count).reshape(shape, order="F" if header["fortran_order"] else "C")
        return array.astype(dtype.newbyteorder("="), copy=False)


# --- torch --------------------------------------------------------------------------------------------------------------


class _Stored:
    """Tensors of a file as arrays. ``storage(s)``: its numbers, an array of one axis."""

    def state_dict(self, notes):
        chosen = unwrap.state_dict(self.loaded, _is_array, notes)
        self.check(chosen.values())
        return {name: self.array(tensor) for name, tensor in chosen.items()}

    def check(self, tensors):
        """All tensors together are hardly more than all storages: views of one may not be copied out again and again."""
        tensors = [t for t in tensors if isinstance(t, Tensor)]
        held = sum(s.count * _dtype(s.kind).itemsize for s in {t.storage for t in tensors})
        asked = sum(math.prod(t.size) * _dtype(t.kind or t.storage.kind).itemsize for t in tensors)
        if asked > 2 * held + 2**26:
            raise Refused(f"has tensors of {asked:,} bytes in storages of {held:,}: no network does")

    def array(self, tensor):
        if not isinstance(tensor, Tensor):
            return tensor
        data = self.storage(tensor.storage)
        if tensor.kind:
            data = data.view(np.uint8).view(_dtype(tensor.kind))
        return view(data, tensor)

    def everything(self):
        """All that was loaded, with arrays for tensors. An object that is there twice is looked at once."""
        seen, tensors = {}, []

        def walk(value, depth):
            if isinstance(value, Tensor):
                tensors.append(value)
            elif isinstance(value, dict | list | tuple) and id(value) not in seen:
                seen[id(value)] = value
                if depth > 50:
                    raise Refused("is nested more than 50 deep: no checkpoint is")
                for inner in value.values() if isinstance(value, dict) else value:
                    walk(inner, depth + 1)

        def made(value):
            if isinstance(value, Tensor):
                return self.array(value)
            if not isinstance(value, dict | list | tuple):
                return value
            if id(value) not in done:
                done[id(value)] = {} if isinstance(value, dict) else []
                if isinstance(value, dict):
                    done[id(value)] |= {key: made(v) for key, v in value.items()}
                else:
                    done[id(value)] += [made(v) for v in value]
            return done[id(value)]

        done = {}
        walk(self.loaded, 0)
        self.check(tensors)
        return made(self.loaded)


class _Torch(_Stored):
    """The zip format, of torch 1.6 and later."""

    def __init__(self, members):
        self.members, self.read = members, {}
        found = [name for name in members.names if name.endswith("/data.pkl") or name == "data.pkl"]
        if other := kinds.archive(members.names) if not found or _program(members.names) else "":
            raise Refused(other)
        if len(found) > 1:
            raise Refused(f"has {len(found)} members data.pkl: no checkpoint does")
        self.root = found[0].removesuffix("data.pkl")
        self.loaded = Machine(io.BytesIO(members.read(found[0]))).load()
        order = f"{self.root}byteorder"
        self.big = order in members.names and members.read(order) == b"big"

    def storage(self, stored):
        if stored.key not in self.read:
            self.read[stored.key] = self.members.read(f"{self.root}data/{stored.key}")
        data = np.frombuffer(self.read[stored.key], _dtype(stored.kind), stored.count)
        return data.byteswap() if self.big else data


def _program(names):
    return any(name.endswith("/constants.pkl") for name in names)


class _Legacy(_Stored):
    """Five pickles, then the storages one after the other."""

    def __init__(self, file):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            machine = Machine(stream)
            if machine.load() != LEGACY_MAGIC:
                raise Refused("is a pickle that torch.save did not write: save the arrays as .npz or .safetensors")
            machine.load(), machine.load()  # protocol, machine
            self.loaded, keys = machine.load(), machine.load()
            if not isinstance(keys, list):
                raise ValueError("it has no list of storages")
            self.places, at = {}, stream.tell()
            self.file, self.read = file, {}
            for key in map(str, keys):
                (count,) = struct.unpack("<q", stream[at : at + 8])
                stored = machine.storages[key]
                if count != stored.count:
                    raise ValueError(f"storage {key[:20]} has {count} numbers, {stored.count} were promised")
                length = count * _dtype(stored.kind).itemsize
                if not 0 <= length <= len(stream) - at - 8:
                    raise ValueError("the file ends within its numbers")
                self.places[key] = (at + 8, length)
                at += 8 + length

    def storage(self, stored):
        if stored.key not in self.read:
            at, length = self.places[stored.key]
            self.file.seek(at)
            self.read[stored.key] = self.file.read(length)
        return np.frombuffer(self.read[stored.key], _dtype(stored.kind), stored.count)


def _dtype(name):
    found = STORAGES.get(name) or TYPES.get(name)
    if found is None:
        raise Refused(
            f"has numbers of type {printable(name, 30)}, a quantised network: give one with float32, float16 or bfloat16"
        )
    return np.dtype(found)


def view(data, tensor):
    """The array of a tensor in its storage's numbers ``data``, of one axis. ValueError where it lies outside them."""
    offset, size, stride = tensor.offset, tensor.size, tensor.stride
    if 0 in size:
        return np.zeros(size if math.prod(max(n, 1) for n in size) < 2**40 else (0,), data.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if offset < 0 or min((*size, *stride), default=0) < 0 or last >= data.size:
        raise ValueError(f"a tensor of shape {size} lies outside its storage of {data.size} numbers")
    strides = [s * data.itemsize for s in stride]
    seen = np.lib.stride_tricks.as_strided(data[offset:], size, strides)
    return np.asarray(seen, order="C")  # no copy of a tensor that fills its storage: checkpoints have gigabytes
