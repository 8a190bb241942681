"""Checkpoints of the score-SDE code: NCSN++, DDPM++ and its DDPM, from torch and from the older Flax.

    state = score_sde.read("checkpoint_24.pth")              # torch: the averaged weights; or a Flax file, given its network
    net, params = score_sde.convert(state, config)           # config: the official one as a dict of dicts, or
    net, params = score_sde.convert(state, fir=(1, 3, 3, 1), centre=True, scale_by_sigma=True)

torch names arrays by the module's number in the order of construction (`all_modules.7.Conv_0.weight`), which is that of
`NCSNpp.parts`. Read from the state dict: widths, levels, blocks, attention, embedding, kind of block, pyramids. It does not
show `fir`, `centre` (True for data in [0, 1], False for [-1, 1]: the official `centered` reversed) and `scale_by_sigma`: they
must be given. `skip_rescale`, `activation` and `groups` have NCSN++'s values unless given; the DDPM wants skip_rescale=False
and groups=32.

Flax names by class in the order of calls (`ResnetBlockBigGANpp_3`) and keeps arrays as we do; `from_flax` renames them.

Source: Song et al. 2021, arXiv:2011.13456; names of yang-song/score_sde_pytorch and yang-song/score_sde.
"""

from pathlib import Path

import flax
import numpy as np

from ..nets import NCSNpp
from ..wording import printable
from . import files, strict
from .strict import Entry, module, norm

UNSEEN = ("fir", "centre", "scale_by_sigma")
NONE = {"none": None}


# --- names ----------------------------------------------------------------------------------------------------------


def table(net):
    """Entries of every array the family can have; `strict.used` keeps those of this network."""
    return [entry for n, part in enumerate(net.parts()) for entry in _part(net, part, f"all_modules.{n}")]


def _nin(path, *names):
    """A product whose kernel they keep as (in, out)."""
    ends = (("kernel", "W"), ("bias", "b"))
    return [Entry((*path, ours), tuple(f"{name}.{theirs}" for name in names), "plain") for ours, theirs in ends]


def _part(net, part, name):
    at = part.name
    if part.kind == "fourier":
        return [Entry((at, "frequencies"), (f"{name}.W",), "plain")]
    if part.kind in ("dense", "conv"):
        return module([at], name, part.kind)
    if part.kind == "norm":
        return norm([at], name)
    if part.kind == "attention":
        qkv = _nin([at, "qkv"], *(f"{name}.NIN_{n}" for n in range(3)))
        return [*norm([at, "norm"], f"{name}.GroupNorm_0"), *qkv, *_nin([at, "proj"], f"{name}.NIN_3")]
    if part.kind == "combine":
        return module([at], f"{name}.Conv_0", "dense2")
    if part.kind == "res":
        biggan = net.resblock == "biggan"
        skip = module([at, "skip"], f"{name}.Conv_2", "dense2") if biggan else _nin([at, "skip"], f"{name}.NIN_0")
        return [
            *norm([at, "norm_1"], f"{name}.GroupNorm_0"),
            *module([at, "conv_1"], f"{name}.Conv_0", "conv"),
            *module([at, "embedding"], f"{name}.Dense_0", "dense"),
            *norm([at, "norm_2"], f"{name}.GroupNorm_1"),
            *module([at, "conv_2"], f"{name}.Conv_1", "conv"),
            *skip,
        ]
    path = [at] if net.fir and part.way == "up" else [at, "conv"]
    return module(path, f"{name}.{'Conv2d_0' if net.fir else 'Conv_0'}", "conv")


# --- configuration --------------------------------------------------------------------------------------------------


def from_config(config):
    """Our fields from the official configuration as a dict of dicts: its parts "model" and "data"."""
    m, d = config["model"], config["data"]
    fields = {
        "out_channels": d["num_channels"], "width": m["nf"], "multipliers": tuple(m["ch_mult"]), "blocks": m["num_res_blocks"],
        "attention": tuple(d["image_size"] // side for side in m["attn_resolutions"]), "conditional": m["conditional"],
        "activation": m["nonlinearity"].lower(), "centre": not d["centered"], "resample_conv": m["resamp_with_conv"],
        "scale_by_sigma": m["scale_by_sigma"], "sigmas": (m["sigma_max"], m["sigma_min"], m["num_scales"]),
        "dropout": m["dropout"],
    }  # fmt: skip
    if m["name"] == "ddpm":
        own = {"embedding": "positional", "resblock": "ddpm", "fir": None, "skip_rescale": False, "groups": 32}
        return fields | own
    if m["name"] != "ncsnpp":
        raise ValueError(f"model name={m['name']!r} is not supported: only ncsnpp or ddpm")
    choice = lambda name: NONE.get(m[name].lower(), m[name].lower())
    return fields | {
        "embedding": choice("embedding_type"), "fourier_scale": m["fourier_scale"], "resblock": choice("resblock_type"),
        "fir": tuple(m["fir_kernel"]) if m["fir"] else None, "skip_rescale": m["skip_rescale"],
        "progressive": choice("progressive"), "progressive_input": choice("progressive_input"),
        "combine": choice("progressive_combine"),
    }  # fmt: skip


def _modules(state):
    """[(kind, {name below: shape})] by number; a number without arrays is a layer that only resamples."""
    below = {}
    for name, array in state.items():
        top, *rest = name.split(".")
        if top == "all_modules" and len(rest) > 1 and rest[0].isdecimal():
            below.setdefault(strict.number(rest[0], state), {})[".".join(rest[1:])] = array.shape
    return [(_kind(below.get(n, {})), below.get(n, {})) for n in range(max(below, default=-1) + 1)]


def _kind(names):
    if not names:
        return "bare"
    if any(name.startswith("NIN_3") for name in names):
        return "attention"
    if any(name.startswith(("GroupNorm_", "Conv_1")) for name in names):
        return "change" if any(n.startswith("Conv_2") for n in names) and _into(names) == _out_of(names) else "res"
    if "W" in names:
        return "fourier"
    if "weight" in names:
        return {1: "norm", 2: "dense"}.get(len(names["weight"]), "conv")
    if any(name.startswith("Conv2d_0") for name in names):
        return "resample"
    return "combine" if names.get("Conv_0.weight", (0,))[-1] == 1 else "resample"


def _vote(names, *where):
    """The commonest length among axes of the arrays of one module, as `strict.vote`."""
    sizes = [names[name][axis] for name, axis in where if name in names]
    return max(sizes, key=sizes.count, default=None)


def _into(names):
    """Channels that a residual block takes, from several of its arrays."""
    return _vote(names, ("GroupNorm_0.weight", 0), ("GroupNorm_0.bias", 0), ("Conv_0.weight", 1), ("Conv_2.weight", 1))


def _out_of(names):
    return _vote(names, ("GroupNorm_1.weight", 0), ("GroupNorm_1.bias", 0), ("Conv_0.weight", 0), ("Conv_1.weight", 0))


def config_from_state(state):
    """The fields that a torch state dict shows. Raises ValueError where it is not one of this family."""
    modules = _modules(state)
    kinds = [kind for kind, _ in modules]
    if "conv" not in kinds or kinds.count("res") < 5:
        raise ValueError("this is no checkpoint of the score-SDE family: it has too few all_modules.*")
    start = kinds.index("conv")
    width, channels = modules[start][1]["weight"][:2]
    found = {"width": width, "out_channels": channels, "conditional": "dense" in kinds[:start]}
    found["embedding"] = "fourier" if "fourier" in kinds[:start] else "positional"

    plain = [n for n, kind in enumerate(kinds) if kind == "res"]
    levels, blocks, last = _levels(kinds, plain, start)
    ends = [plain[(level + 1) * blocks - 1] for level in range(levels)]  # the last block of each level on the way down
    heads = [plain[level * blocks] for level in range(levels)]
    widths = [_out_of(modules[n][1]) for n in heads]
    found |= {"blocks": blocks, "multipliers": tuple(w // width if w % width == 0 else w / width for w in widths)}
    found["attention"] = tuple(2**level for level, n in enumerate(heads) if kinds[n + 1] == "attention")
    if levels > 1:
        step = ends[0] + (2 if kinds[ends[0] + 1] == "attention" else 1)
        found["resblock"] = "biggan" if kinds[step] == "change" else "ddpm"
        if kinds[step] != "change":
            found["resample_conv"] = kinds[step] == "resample"
        found["progressive_input"] = {"combine": "input_skip", "resample": "residual"}.get(kinds[step + 1])
        if kinds[step + 1] == "combine":
            double = _into(modules[heads[1]][1]) == 2 * modules[step + 1][1]["Conv_0.weight"][0]
            found["combine"] = "cat" if double else "sum"
        convs = [names["weight"][0] for kind, names in modules[last:] if kind == "conv"]
        found["progressive"] = None if len(convs) == 1 else "residual" if convs[0] != channels else "output_skip"
    if "sigmas" in state:
        sigmas = np.asarray(state["sigmas"], np.float64)
        found["sigmas"] = (*(float(f"{sigmas[end]:.6g}") for end in (0, -1)), len(sigmas))
        if not np.allclose(sigmas, _sigmas(found["sigmas"]), rtol=1e-5):
            raise ValueError(f"sigmas from {sigmas[0]:g} to {sigmas[-1]:g} are not geometric: this is another family")
    return found


def _sigmas(sigmas):
    large, small, number = sigmas
    return np.exp(np.linspace(np.log(large), np.log(small), number))


def _levels(kinds, plain, start):
    """(levels, blocks, number of the last block of the middle), from the run of blocks before anything resamples.

    L levels have L (2 blocks + 1) + 2 blocks in all.
    """
    first = next((n for n in range(start, len(kinds)) if kinds[n] in ("change", "bare", "resample")), None)
    blocks = (len(plain) - 3) // 2 if first is None else sum(n < first for n in plain)
    levels = (len(plain) - 2) // (2 * blocks + 1)
    if levels < 1 or levels * (2 * blocks + 1) + 2 != len(plain):
        raise ValueError(f"{len(plain)} residual blocks, {blocks} of them before the sides change, are no such network: "
                         "the state dict is cut short or of another family")  # fmt: skip
    return levels, blocks, plain[levels * blocks + 1]


# --- files ----------------------------------------------------------------------------------------------------------


def read(path, averaged=True):
    """The state dict in what the official training wrote with torch (.pth), or the parameters of a Flax checkpoint (any other
    name; a tree for :func:`from_flax`). averaged: the moving averages, which are the ones to sample with.

    Raises ValueError, one line, for a file that is damaged or of something else.
    """
    path = Path(path)
    if path.suffix in files.TORCH:
        return from_torch(files.read_torch(path), averaged)
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        return tree["params_ema"] if averaged else tree["optimizer"]["target"]
    except Exception as error:  # msgpack's kinds, and whatever a damaged file leads to
        raise ValueError(f"{path}: no checkpoint of the score-SDE code ({printable(error, 200)})") from error


def from_torch(loaded, averaged=True):
    """The state dict in a loaded torch checkpoint {"model": ..., "ema": {"shadow_params": ...}}, or a bare state dict.

    The averages are a list, in the order of the parameters that were trained: not the Fourier frequencies, not `sigmas`.
    """
    state = loaded.get("model", loaded)
    state = {name.removeprefix("module."): array for name, array in state.items()}
    if not averaged or "ema" not in loaded:
        return state
    trained = [name for name in state if name != "sigmas" and not name.endswith("all_modules.0.W")]
    shadows = loaded["ema"]["shadow_params"]
    if [np.shape(a) for a in shadows] != [np.shape(state[name]) for name in trained]:
        raise ValueError(f"the checkpoint has {len(shadows)} averages, not of the shapes of its {len(trained)} parameters: "
                         "give averaged=False")  # fmt: skip
    return state | dict(zip(trained, shadows))


def flax_names(net):
    """{number of a module: its name in the older Flax}: the class and how many of that class were called before."""
    official = net.groups is None  # `ncsnpp`; the `ddpm` model has classes of its own
    block = "ResnetBlockBigGANpp" if net.resblock == "biggan" else "ResnetBlockDDPMpp" if official else "ResnetBlockDDPM"
    classes = {"fourier": "GaussianFourierProjection", "dense": "Dense", "conv": "Conv", "norm": "GroupNorm", "res": block,
               "attention": "AttnBlockpp" if official else "AttnBlock", "combine": "Combine"}  # fmt: skip
    count, names = {}, {}

    def called(name):
        count[name] = count.get(name, -1) + 1
        return f"{name}_{count[name]}"

    deepest = len(net.multipliers) - 1
    for n, part in enumerate(net.parts()):
        if part.kind == "combine":  # the image is made smaller by a layer without parameters
            called("Downsample")
        if net.progressive == "output_skip" and part.kind == "norm" and not part.name.startswith(f"output_{deepest}_"):
            called("Upsample")
        names[n] = called(classes.get(part.kind) or {"down": "Downsample", "up": "Upsample"}[part.way])
    return names


def from_flax(tree, net):
    """The state dict, as torch names it, of the parameters of the older Flax code for this network."""
    numbers = {name: n for n, name in flax_names(net).items()}
    state = {}
    for path, array in flax.traverse_util.flatten_dict(tree).items():
        *modules, last = path
        number = numbers.get(modules[0], modules[0])
        array = np.asarray(array)
        if last == "scale" or modules[-1].startswith("GroupNorm"):
            array = array.reshape(-1)  # kept as (1, 1, 1, C)
        if last in ("kernel", "weight"):
            array = strict.theirs("conv" if array.ndim == 4 else "dense", array)
        last = {"kernel": "weight", "scale": "weight"}.get(last, last)
        state[".".join(["all_modules", str(number), *modules[1:], last])] = array
    return state


# --- conversion -----------------------------------------------------------------------------------------------------


def params_from_state(net, state, dtype=np.float32):
    """Parameters of `net` from a torch state dict; a ValueError lists everything that does not fit."""
    strict.check_size(net, state)
    conv_in = next(n for n, part in enumerate(net.parts()) if part.name == "conv_in")
    channels = strict.vote(state, (f"all_modules.{conv_in}.weight", 1)) or net.out_channels
    size = 2 ** (len(net.multipliers) - 1)
    shapes = strict.shapes(net, *strict.image_inputs(net, size, channels))
    arrays = {name: array for name, array in state.items() if name != "sigmas"}  # a buffer: field `sigmas` of the network
    return strict.to_params(arrays, table(net), shapes, net, dtype)


def convert(state, config=None, dtype=np.float32, **hints):
    """(net, params) of a torch state dict {name: array}, or a Flax tree (which shows no fields: give `config`).

    config: the official configuration as a dict of dicts. hints: fields of `NCSNpp`, which win.
    Raises ValueError for fields that cannot be seen and were not given, and for arrays that do not fit.
    """
    tree = any(isinstance(value, dict) for value in state.values())
    if config is not None:
        fields = from_config(config) | hints
    elif tree:
        raise ValueError("Flax's names show no order of the modules: give config=, the official configuration")
    elif lacking := [name for name in UNSEEN if name not in hints]:
        raise ValueError(f"a state dict does not show {', '.join(lacking)}: give them, or config=, the official configuration")
    else:
        fields = config_from_state(state) | hints
    net = NCSNpp(**fields)
    return net, params_from_state(net, from_flax(state, net) if tree else state, dtype)


def to_state(net, params):
    """The official torch state dict (numpy arrays) of our parameters, with the buffer `sigmas`."""
    return strict.to_state(params, table(net)) | {"sigmas": _sigmas(net.sigmas)}
