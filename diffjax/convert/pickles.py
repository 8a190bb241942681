"""A pickle as data: an interpreter of the opcodes that a checkpoint needs, which calls nothing and builds nothing else.

Out come dicts, lists, tuples, sets, numbers, strings, bytes, :class:`Tensor` and, for whatever else the file names, a
:class:`Foreign`: its name and nothing more. No object of Python or numpy is ever handed to an opcode. Those that call (REDUCE,
NEWOBJ, INST, OBJ) look the name up here; those that write (BUILD, SETITEM, APPEND ...) do so in dicts, lists and sets that
this file made, or nowhere. Time and memory follow from the length of the file: numbers in it (lengths, indices, counts)
reserve nothing. Tensors are records; ``files`` makes arrays of them.

Source: the opcodes as ``pickletools`` of the standard library describes them.
"""

from __future__ import annotations

import pickletools
from typing import NamedTuple

MOST_OPCODES = 1_500_000  # a checkpoint of 1000 tensors has 40,000
MOST_MEMO = 10**8


class Refused(ValueError):
    """The file is whole and is something else than weights, or more: the text says what."""


class Foreign:
    """What a pickle names and this library does not know: only its name is kept."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self):
        return self.name


class Storage(NamedTuple):
    """Where the numbers of tensors are: type by torch's name, key in the archive, how many."""

    kind: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage; ``kind``: the type where the storage has none of its own."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple
    kind: str | None = None


# Named by checkpoints for what surrounds the weights. They stay names; whatever else is named is refused, so that a hostile
# file is called one
HARMLESS = (
    "argparse.", "pathlib.", "numpy.", "collections.", "omegaconf.", "easydict.", "ml_collections.", "datetime.",
    "typing.", "enum.", "lightning_fabric.", "pytorch_lightning.", "lightning.", "_codecs.encode",
    "copyreg._reconstructor", "types.SimpleNamespace", "torch.device", "torch.optim.", "torch.dtype", "torch.FloatTensor",
)  # fmt: skip
BUILTINS = ("set", "frozenset", "complex", "bytearray", "slice", "range", "object", "int", "float", "str", "bool", "bytes",
            "list", "dict", "tuple", "type", "long", "unicode", "basestring", "xrange")  # fmt: skip
WHOLE = ("torch.nn.", "torch.jit.", "torch.fx.", "__main__.", "diffusers.", "torchvision.", "torch_utils.", "models.")
SPECIAL = {"_rebuild_qtensor": "a quantised network", "_rebuild_sparse_tensor": "a network with sparse arrays",
           "_rebuild_meta_tensor_no_storage": "a network whose arrays are on the meta device, without numbers",
           "_rebuild_nested_tensor": "a network with nested arrays"}  # fmt: skip


class Machine:
    """Runs one pickle. stream: read, readline and tell, at its first byte; afterwards behind its last.

    Raises ValueError for what no checkpoint needs, and whatever a damaged stream leads to.
    """

    def __init__(self, stream):
        self.stream, self.stack, self.marks, self.memo, self.steps = stream, [], [], {}, 0
        self.storages = {}  # by key: all that were named, also within what is left out

    def load(self):
        """The value. One machine may load several pickles that follow each other."""
        self.stack, self.marks, self.memo = [], [], {}
        for code, argument, _ in pickletools.genops(self.stream):
            self._count(1)
            if code.name == "STOP":
                (value,) = self.stack
                return value
            self._do(code.name, argument)
        raise ValueError("the pickle has no end")

    def _count(self, steps):
        self.steps += steps
        if self.steps > MOST_OPCODES:
            raise Refused(f"a pickle of more than {MOST_OPCODES:,} opcodes is no dict of tensors")

    def _do(self, name, argument):
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            at = len(self.memo) if argument is None else argument
            if not 0 <= at < MOST_MEMO:
                raise ValueError(f"the pickle puts something into place {str(at)[:20]} of its memory")
            self.memo[at] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        else:
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise Refused(f"refused: the opcode {name} is not part of a dict of tensors")
            method(argument)

    # --- the stack: nothing below the last mark may be taken

    def _one(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("the pickle takes more than it has put down")
        return self.stack.pop()

    def _top(self):
        self.stack.append(value := self._one())
        return value

    def _to_mark(self) -> list:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def _pop(self, _):
        self._one()

    def _pop_mark(self, _):
        self._to_mark()

    def _dup(self, _):
        self.stack.append(self._top())

    def _take(self, n) -> list:
        return [self._one() for _ in range(n)][::-1]

    # --- dicts, lists, sets: those that this machine made

    def _tuple(self, _):
        self.stack.append(tuple(self._to_mark()))

    def _tuple1(self, _):
        self.stack.append(tuple(self._take(1)))

    def _tuple2(self, _):
        self.stack.append(tuple(self._take(2)))

    def _tuple3(self, _):
        self.stack.append(tuple(self._take(3)))

    def _list(self, _):
        self.stack.append(self._to_mark())

    def _dict(self, _):
        items = self._to_mark()
        self.stack.append({})
        self._put(items)

    def _setitem(self, _):
        self._put(self._take(2))

    def _setitems(self, _):
        self._put(self._to_mark())

    def _put(self, items):
        at = self._top()
        if len(items) % 2:
            raise ValueError("the pickle has a key without a value")
        if type(at) is dict:
            at.update(zip(map(_key, items[::2]), items[1::2]))

    def _append(self, _):
        self._extend(self._take(1))

    def _appends(self, _):
        self._extend(self._to_mark())

    def _additems(self, _):
        self._extend(map(_key, self._to_mark()))

    def _extend(self, items):
        at = self._top()
        if type(at) is list:
            at.extend(items)
        elif type(at) is set:
            at.update(items)

    def _frozenset(self, _):
        self.stack.append(frozenset(map(_key, self._to_mark())))

    def _build(self, _):
        """The state of an object: an ordered dict's attributes, a foreign object's fields. Nothing is written."""
        self._one(), self._top()

    def _next_buffer(self, _):
        raise Refused("refused: the pickle wants buffers from outside the file")

    # --- names and what would be calls

    def _global(self, argument):
        self.stack.append(named(*argument.split(" ", 1)))

    def _stack_global(self, _):
        module, name = self._take(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("refused: a name that is no text")
        self.stack.append(named(module, name))

    def _call(self, function, arguments):
        for argument in arguments if isinstance(arguments, tuple) else ():  # a copy may be made of each: it counts as work
            self._count(len(argument) if isinstance(argument, dict | list | tuple) else 1)
        self.stack.append(_called(function, arguments))

    def _reduce(self, _):
        self._call(*self._take(2))

    def _newobj(self, _):
        self._call(*self._take(2))

    def _newobj_ex(self, _):
        kind, arguments, _ = self._take(3)
        self._call(kind, arguments)

    def _obj(self, _):
        kind, *arguments = self._to_mark()
        self._call(kind, tuple(arguments))

    def _inst(self, argument):
        arguments = tuple(self._to_mark())
        self._call(named(*argument.split(" ", 1)), arguments)

    def _persid(self, argument):
        raise Refused(f"refused: persistent id {argument[:40]!r}")

    def _binpersid(self, _):
        stored = _storage(self._one())
        if self.storages.setdefault(stored.key, stored) != stored:
            raise ValueError(f"storage {stored.key[:20]} is of two types or lengths")
        self.stack.append(stored)


VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
}  # fmt: skip
CONSTANTS = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip


def _key(value) -> str | bytes:
    """A key of a dict or member of a set: text, whose hash no file can foresee. Numbers would collide as a file likes."""
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, int | float) and abs(value) < 2**64:
        return str(value)
    return value.name if isinstance(value, Foreign) else f"<{type(value).__name__}>"


def named(module: str, name: str) -> Foreign:
    """The name, if it is one of a checkpoint's. Raises ValueError for others."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}"
    if full == "torch.storage._load_from_bytes":
        raise Refused("a pickle of a pickle: save the state dict with torch.save")
    known = module in ("torch", "torch.storage") and (name.endswith("Storage") or name in TYPES or name == "Size")
    known |= module == "torch._utils" and name.startswith("_rebuild_")
    if "." in name:  # an attribute of what is named
        raise Refused(f"refused: {full[:80]} is not part of a dict of tensors")
    known |= module in ("torch._tensor", "torch.nn.parameter", "torch") and name in (
        "_rebuild_from_type_v2", "Tensor", "Parameter", "Buffer")  # fmt: skip
    known |= module == "torch.serialization" and name == "_get_layout"
    if known or full.startswith(HARMLESS) or (module == "builtins" and name in BUILTINS):
        return Foreign(full)
    if full.startswith(WHOLE):
        raise Refused(f"refused: it holds whole Python objects ({full[:80]}), not only their weights: save the weights with "
                         "torch.save(model.state_dict(), path)")  # fmt: skip
    raise Refused(f"refused: {full[:80]} is not part of a dict of tensors")


def _called(function, arguments):
    """What calling would give, of the few names whose result is data; of the others a name."""
    if not isinstance(function, Foreign) or not isinstance(arguments, tuple):
        raise Refused("refused: a call of something that is no name")
    name = function.name
    if name in ("collections.OrderedDict", "builtins.dict"):
        return dict(_pairs(arguments))
    if name == "collections.defaultdict":
        return dict(_pairs(arguments[1:]))
    if name in ("torch.Size", "builtins.tuple"):
        return tuple(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else ()
    if name == "builtins.list":
        return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []
    if name in ("builtins.set", "builtins.frozenset"):
        return {_key(v) for v in arguments[0]} if arguments and isinstance(arguments[0], list | tuple) else set()
    *_, last = name.rsplit(".", 1)
    if last in SPECIAL:
        raise Refused(f"this is {SPECIAL[last]}: give one with plain float32, float16 or bfloat16 weights")
    if last in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return _tensor(last, arguments)
    if last in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return arguments[0] if isinstance(arguments[0], Tensor) else Foreign(name)
    if last == "_rebuild_from_type_v2":  # function, type, arguments, attributes
        return _called(arguments[0], arguments[2])
    if last.startswith("_rebuild_"):
        raise Refused(f"refused: {name[:80]} is not part of a dict of tensors: save plain tensors")
    return Foreign(name)


def _pairs(arguments):
    """Of a dict's argument: a dict, or pairs."""
    given = arguments[0] if arguments else ()
    if isinstance(given, dict):
        return given
    return ((_key(pair[0]), pair[1]) for pair in given if isinstance(pair, list | tuple) and len(pair) == 2)


# torch's names of types, of a tensor and (with Storage behind the other name) of a storage
TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32",
         "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float",
         "double", "half", "long", "int", "short")  # fmt: skip


def _tensor(function, arguments):
    storage, offset, size, stride, *more = arguments
    whole = lambda n: type(n) is int and 0 <= n < 2**62
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise Refused("refused: a tensor that is no view of a storage")
    if len(size) != len(stride) or len(size) > 32 or not all(map(whole, (offset, *size, *stride))):
        raise ValueError("a tensor lies outside its storage: its shape, strides and offset are no numbers of a tensor")
    kind = None
    if function == "_rebuild_tensor_v3":
        kind = more[2].name.removeprefix("torch.") if isinstance(more[2], Foreign) else None
        more = more[:2] + more[3:]
    if len(more) > 2 and more[2]:
        marks = ", ".join(str(key)[:20] for key in list(more[2])[:4]) if isinstance(more[2], dict) else "otherwise"
        raise Refused(f"a tensor is marked to be read in another way ({marks}): save it with .resolve_conj().resolve_neg()")
    return Tensor(storage, offset, size, stride, kind)


def _storage(identity):
    if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
        raise Refused("refused: a persistent id that is no storage")
    _, kind, key, _, count, *view = identity
    known = isinstance(kind, Foreign) and kind.name.endswith("Storage")
    if not known or not isinstance(key, str | int) or type(count) is not int or count < 0:
        raise Refused("refused: a persistent id that is no storage")
    if any(v is not None for v in view):
        raise Refused("a storage that is a part of another one (torch before 0.4): load it with torch and save it again")
    return Storage(kind.name.rsplit(".", 1)[-1], str(key), count)
