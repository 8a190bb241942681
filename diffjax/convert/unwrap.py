"""The state dict in what a training script saved: which of several, without the names that wrappers put before its own."""

from __future__ import annotations

from ..wording import printable, some
from .pickles import Foreign, Refused, Tensor

# entries that hold a state dict; averaged weights, which are the ones to sample with, come first
AVERAGED = ("params_ema", "ema", "ema_state_dict", "ema_model", "model_ema", "state_dict_ema", "net_ema", "ema_params",
            "ema_weights", "averaged", "G_ema", "generator_ema", "unet_ema", "ema_unet")  # fmt: skip
PLAIN = (
    "state_dict", "model", "model_state_dict", "model_state", "params", "net", "network", "unet", "denoiser",
    "denoise_fn", "model_dict", "net_state_dict", "unet_state_dict", "generator", "weights", "module", "diffusion", "G",
    "netG", "online_model", "teacher", "student",
)  # fmt: skip
WITHIN = ("shadow", "shadow_params", "state_dict", "module", "model", "params")  # of an entry, where the dict lies deeper
# before every name, by wrappers of the network; averaged ones first
PREFIXES = (
    "ema_model.", "model_ema.", "ema.", "params_ema.", "module.", "_orig_mod.", "model.", "net.", "network.", "unet.",
    "state_dict.", "params.", "denoiser.", "diffusion.", "online_model.", "_forward_module.", "generator.",
)  # fmt: skip
NOT_TO_STRIP = ("model.diffusion_model.", "model.map_layer0.", "model.map_noise.")  # families of their own


def state_dict(loaded, is_array, notes: list) -> dict:
    """{name: array} of what a file holds; what was chosen, left out or cut off is put into ``notes``.

    Raises Refused for an optimiser's state and for whatever has no dict of arrays in it.
    """
    found = _find(loaded, is_array, notes, 3)
    if found is None:
        raise Refused(_lacks(loaded))
    return bare(found, is_array, notes)


def _find(value, is_array, notes, depth, under=""):
    if isinstance(value, list | tuple):
        return _of_list(value, is_array, notes, depth, under)
    if not isinstance(value, dict) or not value:
        return None
    if "param_groups" in value and "state" in value:
        raise Refused("an optimiser's state, not a network: give the file of the model (or of its averages)" if not under else
                      f"{under} is an optimiser's state")  # fmt: skip
    arrays = [name for name, a in value.items() if isinstance(name, str) and is_array(a)]
    entries = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, dict | list | tuple) and v}
    if arrays and not (entries and len(arrays) < 4):
        return _without_others(value, arrays, notes)
    order = (*AVERAGED, *PLAIN) if not under else (*WITHIN, *AVERAGED, *PLAIN)
    for name in order if depth else ():
        try:
            inner = _find(entries[name], is_array, notes, depth - 1, name) if name in entries else None
        except Refused:
            continue
        if inner is not None:
            if not under and (name != "state_dict" or len(entries) > 1):
                notes.append(f'took "{name}"' + (f" of {some(entries, 6, 30)}" if len(entries) > 1 else ""))
            return inner
    return _without_others(value, arrays, notes) if arrays else None


def _of_list(values, is_array, notes, depth, under):
    """A list as the DDIM code saves: [network, optimiser, epoch, step, averages]. Of two alike, the last is the averages."""
    dicts = [v for v in list(values)[:16] if isinstance(v, dict) and sum(map(is_array, v.values())) > 3]
    if not dicts:
        return None
    alike = [d for d in dicts if d.keys() == dicts[0].keys()]
    notes.append(f"took the {'averages, the last' if len(alike) > 1 else 'network, the first'} of a list of {len(values)}")
    return _without_others(alike[-1], [k for k, a in alike[-1].items() if is_array(a)], notes)


def _without_others(value, arrays, notes):
    foreign = [f"{printable(k, 40)} ({printable(v, 60)})" for k, v in value.items() if isinstance(v, Foreign)]
    if foreign:
        raise Refused(f"refused: {foreign[0]} is not part of a dict of tensors")
    kept = set(arrays)
    if others := [name for name in value if name not in kept]:
        notes.append(f"left out {some((f'{name} ({_kind(value[name])})' for name in others), 4, 40)}, which are no arrays")
    return {name: value[name] for name in arrays}


def _kind(value):
    return type(value).__name__ if not isinstance(value, int | float) else value if abs(value) < 1e15 else "a number"


def bare(state: dict, is_array, notes: list) -> dict:
    """Without the prefixes that all names share; of several networks side by side (model.*, ema_model.*) one is taken."""
    cut = []
    for _ in range(4):
        prefix = _prefix(state)
        if prefix is None:
            break
        other = [name for name in state if not name.startswith(prefix)]
        state = {name[len(prefix) :]: a for name, a in state.items() if name.startswith(prefix)}
        cut.append(prefix)
        if other:
            notes.append(f"took the arrays {prefix}* and left out {some(other, 3, 40)}")
    if cut:
        notes.append(f'took the names without their "{"".join(cut)}"')
    return state


def _prefix(state):
    if not state or any(name.startswith(NOT_TO_STRIP) for name in state):
        return None
    counts = {p: sum(name.startswith(p) for name in state) for p in PREFIXES}
    counts = {p: n for p, n in counts.items() if n}
    covered = sum(counts.values())
    # a few counters (initted, step, num_updates) may stand beside; a network has more arrays than those
    if not counts or len(state) - covered > 3 or max(counts.values()) < max(4, covered // 3):
        return None
    if len(counts) == 1 and next(iter(counts.values())) == len(state):
        return next(iter(counts))
    return next((p for p, n in counts.items() if n >= 4), None)


def _lacks(loaded) -> str:
    if isinstance(loaded, Tensor):
        return "one tensor without a name: give a state dict"
    if isinstance(loaded, Foreign):
        return f"refused: {printable(loaded.name, 80)} is not part of a dict of tensors"
    if isinstance(loaded, dict):
        foreign = [printable(v.name, 80) for v in loaded.values() if isinstance(v, Foreign)]
        if foreign:
            return f"refused: {foreign[0]} is not part of a dict of tensors"
        found = some(map(str, list(loaded)[:200]), 5, 40) or "an empty one"
        return f"expected a dict of arrays, found {found}: save model.state_dict()"
    return f"expected a dict of arrays, found {type(loaded).__name__}: save model.state_dict()"
