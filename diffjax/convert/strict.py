"""The machinery of all converters: a table of (our path, their names, layout), and one strict pass over it.

A state dict is a flat dict of names to numpy arrays in torch's layouts; our parameters are a FrozenDict
{"params": nested dict} in Flax's. Layouts ("ours" <- "theirs"):

  conv    (h, w, in, out) <- (out, in, h, w)
  dense   (in, out)       <- (out, in)            dense1, dense2: the same with 1 or 2 trailing axes of size 1
  matrix  (a, b)          <- (b, a)               (a plain transpose that is no product: positional embeddings)
  plain   unchanged
"""

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ..wording import printable, some


class Entry(NamedTuple):
    """One array of ours: its path in the parameters, the names it is joined from (along the last axis), the layout."""

    path: tuple
    names: tuple
    layout: str


def theirs(layout, array):
    """Our array in their layout."""
    if layout == "plain":
        return array
    array = array.transpose((3, 2, 0, 1)) if layout == "conv" else array.T
    trailing = {"dense1": 1, "dense2": 2}.get(layout, 0)
    return array.reshape(array.shape + (1,) * trailing)


def ours(layout, array):
    """The inverse of `theirs`."""
    if layout == "plain":
        return array
    if layout == "conv":
        return array.transpose((2, 3, 1, 0))
    return array.reshape(array.shape[:2]).T


def module(path, name, layout, *, bias=True):
    """Entries of a convolution or product: ours kernel, bias; theirs weight, bias. `name` may be a tuple to be joined."""
    names = (name,) if isinstance(name, str) else tuple(name)
    entries = [Entry((*path, "kernel"), tuple(f"{n}.weight" for n in names), layout)]
    if bias:
        entries.append(Entry((*path, "bias"), tuple(f"{n}.bias" for n in names), "plain"))
    return entries


def norm(path, name):
    return [Entry((*path, "scale"), (f"{name}.weight",), "plain"), Entry((*path, "bias"), (f"{name}.bias",), "plain")]


def shapes(net, *inputs):
    """{path: shape} of the parameters of `net` for inputs of these shapes and types; nothing is computed."""
    tree = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def image_inputs(net, size, channels, *extra):
    """Shapes of (x, t, *extra, y) for `shapes`: one image of size x size; y is the condition where there is one."""
    x = jax.ShapeDtypeStruct((size, size, channels), jnp.float32)
    if hasattr(net, "blank"):
        return (x, jax.ShapeDtypeStruct((), jnp.float32), *extra, jax.eval_shape(net.blank, x))
    y = [jax.ShapeDtypeStruct((), jnp.int32)] if net.classes else []
    return (x, jax.ShapeDtypeStruct((), jnp.float32), *extra, *y)


def used(table, shape_of):
    """The entries of a table that the network has. A path that no entry covers is a bug of the table."""
    table = [entry for entry in table if entry.path in shape_of]
    uncovered = set(shape_of) - {entry.path for entry in table}
    assert not uncovered, f"converter has no names for {sorted(uncovered)}"
    return table


def expected(table, shape_of):
    """{their name: shape} that a state dict must have."""
    result = {}
    for entry in table:
        *lead, last = shape_of[entry.path]
        part = np.broadcast_to(np.zeros(()), (*lead, last // len(entry.names)))
        for name in entry.names:
            result[name] = theirs(entry.layout, part).shape
    return result


def mismatches(state, wanted):
    """(missing names, names left over, "name: shape, wanted shape")."""
    missing = [name for name in wanted if name not in state]
    left_over = [name for name in state if name not in wanted]
    wrong = [
        f"{printable(name, 80)} {tuple(state[name].shape)} (wanted {shape})"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    return missing, left_over, wrong


def vote(state, *where):
    """The commonest length among axes [(name, axis), ...] of the arrays that are there, the first of equals; None if none is.

    A fact of the configuration is read from several arrays, so that one wrong array is named and not believed.
    """
    sizes = [state[name].shape[axis] for name, axis in where if name in state and np.ndim(state[name]) > axis]
    return max(sizes, key=sizes.count, default=None)


MOST_LEVELS, MOST_WIDTH = 16, 2**16  # of a network: 7 and 1024 were published


def number(text: str, state) -> int:
    """A number in the name of an array. ValueError for one that so few arrays cannot have: what is counted up to it would
    not end."""
    if len(text) > 9 or int(text) > 2 * len(state) + 64:
        raise ValueError(f"an array is named as block {text[:20]}, of a file of {len(state)} arrays: it is damaged")
    return int(text)


def check_size(net, state) -> None:
    """ValueError for a network beyond what these arrays can be of, before it is built: that takes time for every block."""
    levels, blocks = len(net.multipliers), net.blocks
    if type(blocks) is not int or not 1 <= blocks or not 1 <= levels <= MOST_LEVELS or levels * blocks > len(state):
        raise ValueError(f"{levels} levels of {printable(blocks, 20)} blocks are no network of {len(state)} arrays: the "
                         "configuration or the file is damaged")  # fmt: skip
    widths = (net.width, *(m * net.width for m in net.multipliers), net.out_channels)
    if not all(0 < w <= MOST_WIDTH for w in widths):
        raise ValueError(f"a layer of {printable(max(widths), 20)} channels is beyond any network: the configuration or the "
                         "file is damaged")  # fmt: skip


def describe(net):
    """The configuration of a network, without what has its default: "UNet(out_channels=3, width=128, ...)"."""
    fields = {name: getattr(net, name) for name in net.__dataclass_fields__ if name not in ("parent", "name")}
    default = {name: field.default for name, field in net.__dataclass_fields__.items()}
    return f"{type(net).__name__}({', '.join(f'{k}={v!r}' for k, v in fields.items() if v != default[k])})"


def check(state, wanted, net):
    """Raise one ValueError that lists all mismatches and the configuration assumed, if there are any."""
    missing, left_over, wrong = mismatches(state, wanted)
    found = [
        f"{label}: {some(names)}"
        for label, names in (("missing", missing), ("left over", left_over), ("of another shape", wrong))
        if names
    ]
    if found:
        raise ValueError(f"the state dict does not fit {describe(net)}: {'; '.join(found)}")


def check_types(state) -> None:
    """ValueError for arrays of whole numbers, truth values and complex ones: they say how weights are coded, or are none."""
    bad = {name: a.dtype for name, a in state.items() if not jnp.issubdtype(a.dtype, jnp.floating)}
    if bad:
        first = next(iter(bad))
        raise ValueError(f"{printable(first, 80)} holds numbers of type {bad[first]}, not floating ones: it is a quantised "
                         f"network or none ({len(bad)} such arrays): give one with float32, float16 or bfloat16")  # fmt: skip


def to_params(state, table, shape_of, net, dtype=np.float32):
    """Our parameters, a FrozenDict {"params": ...} of `dtype`, from a state dict that fits exactly."""
    table = used(table, shape_of)
    check(state, expected(table, shape_of), net)
    check_types(state)
    flat = {}
    for entry in table:
        parts = [ours(entry.layout, np.asarray(state[name])) for name in entry.names]
        # jnp.asarray would compile a copy for each new shape; device_put may keep the array itself, so it is a new one
        flat[entry.path] = jax.device_put(np.concatenate(parts, axis=-1, dtype=dtype, casting="unsafe"))
    return flax.core.freeze({"params": flax.traverse_util.unflatten_dict(flat)})


def to_state(params, table):
    """The way back: {name: numpy array in torch's layout}, which `torch.load_state_dict` takes after `from_numpy`."""
    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(params)["params"])
    table = used(table, {path: leaf.shape for path, leaf in flat.items()})
    state = {}
    for entry in table:
        parts = np.split(np.asarray(flat[entry.path]), len(entry.names), axis=-1)
        for name, part in zip(entry.names, parts):
            state[name] = np.ascontiguousarray(theirs(entry.layout, part))
    return state
