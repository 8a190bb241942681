"""Reading checkpoints: .safetensors, .npz and torch's .pt, .pth, .ckpt, .bin, without torch and without plain pickle.

A .pt file is a pickle that names tensor storages. Unpickling can run any code, so `find_class` here knows an ordered
dict, the rebuilding of a tensor and the types of storages, and nothing else.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
    "BFloat16Storage": jnp.bfloat16, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of files older than torch 1.6
TORCH = (".pt", ".pth", ".ckpt", ".bin")


def read(path):
    """{name: array} of a checkpoint; ValueError (one line) if it is missing, truncated or holds anything but tensors."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix not in (".safetensors", ".npz", *TORCH):
        raise ValueError(f"{path}: cannot read {path.suffix or 'this'} files; use .safetensors, .npz or {', '.join(TORCH)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        return _state_dict(read_torch(path))
    except (SafetensorError, zipfile.BadZipFile, EOFError, KeyError, struct.error, pickle.UnpicklingError, ValueError,
            TypeError, AttributeError, IndexError, OSError) as error:  # fmt: skip
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged, truncated or not a checkpoint ({text})") from error


def write(path, state):
    """Save {name: array} as .safetensors."""
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)


def _state_dict(loaded):
    """The flat dict of tensors in what a torch file holds: itself, or its entry "state_dict"."""
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(v, np.ndarray) for v in loaded.values()):
        keys = list(loaded)[:5] if isinstance(loaded, dict) else type(loaded).__name__
        raise ValueError(f"expected a flat dict of tensors, found {keys}")
    return dict(loaded)


class _Tensor:
    """A tensor whose storage may not have been read yet."""

    def __init__(self, storage, offset, size, stride):
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)

    def array(self):
        data = self.storage["data"]
        if 0 in self.size:
            return np.zeros(self.size, data.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if self.offset < 0 or min((*self.size, *self.stride), default=0) < 0 or last >= data.size:
            raise ValueError(f"a tensor of shape {self.size} lies outside its storage of {data.size} numbers")
        strides = [s * data.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(data[self.offset :], self.size, strides)
        return np.asarray(view, order="C")  # no copy of a tensor that fills its storage: checkpoints have gigabytes


class _Rebuild:
    """torch._utils._rebuild_tensor_v2 and _rebuild_parameter; no attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, first, *rest):
        return first if isinstance(first, _Tensor) else _Tensor(first, *rest[:3])


class _Unpickler(pickle.Unpickler):
    """A pickle of tensors; `storage(dtype, key, count)` gives the dict that holds (or will hold) the data."""

    def __init__(self, file, storage):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return _Rebuild()
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        raise ValueError(f"refused: {module}.{name} is not part of a dict of tensors")

    def persistent_load(self, identity):
        kind, dtype, key, _, count, *view = identity
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise ValueError(f"refused: persistent id {kind!r}")
        return self.storage(dtype, key, count)


def read_torch(path):
    """What torch.save wrote: tensors as arrays, in dicts and lists as they were."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _arrays(_read_legacy(file))
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            root = index.removesuffix("data.pkl")
            order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
            cache = {}

            def storage(dtype, key, count):
                if key not in cache:
                    raw = archive.read(f"{root}data/{key}")
                    cache[key] = {"data": np.frombuffer(raw, dtype, count)}
                    if order == b"big":
                        cache[key]["data"] = cache[key]["data"].byteswap()
                return cache[key]

            return _arrays(_Unpickler(io.BytesIO(archive.read(index)), storage).load())


def _read_legacy(file):
    stored = {}

    def storage(dtype, key, count):
        return stored.setdefault(key, {"dtype": dtype, "count": count})

    def load():
        return _Unpickler(file, storage).load()

    if load() != LEGACY_MAGIC:
        raise ValueError("neither a zip archive nor torch's older format")
    load(), load()  # protocol, machine
    loaded, keys = load(), load()
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        held = stored[key]
        if count != held["count"]:
            raise ValueError(f"storage {key} has {count} numbers, {held['count']} were promised")
        held["data"] = np.frombuffer(file.read(math.prod((count, held["dtype"].itemsize))), held["dtype"], count)
    return loaded


def _arrays(value):
    if isinstance(value, _Tensor):
        return value.array()
    if isinstance(value, dict):
        return {key: _arrays(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_arrays(v) for v in value]
    return value
