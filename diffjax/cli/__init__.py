"""The command line: ``diffjax restore``, ``diffjax train`` ... (``python -m diffjax`` is the same).

A program's own file says what its options are and wires the library together. None imports jax at the top: --help is
quick, and the number of devices is settled first.
"""

from __future__ import annotations

import importlib
import sys

from . import errors

# command: (module, what it does)
PROGRAMS = {
    "restore": ("restore", "fill in, deblur, enlarge or denoise images with a trained prior"),
    "superresolve": ("superresolve", "enlarge an MR volume, between thick slices or within them"),
    "sample": ("sample", "draw new images from a prior"),
    "train": ("train", "train a prior on a folder of images"),
    "evaluate-prior": ("evaluate_prior", "measure how good a prior is"),
    "export": ("export", "make a prior of a training run"),
    "list": ("listing", "say what there is: methods, masks, tasks, priors, images"),
}


def usage() -> str:
    lines = [f"  {name:16s}{about}" for name, (_, about) in PROGRAMS.items()]
    return "\n".join(
        ["usage: diffjax COMMAND [OPTIONS]", "", "Restoring images with diffusion models.", "", *lines, "",
         "diffjax COMMAND --help explains its options; diffjax --version says which version this is.",
         "", errors.EXIT_CODES]
    )  # fmt: skip


def main(argv=None) -> int:
    """Run a command. -> exit code: 0; 2 after an error of the person who runs it, in one line; 130 after Ctrl-C."""
    return errors.run(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv) -> int:
    if argv and argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv and argv[0] == "--version":
        from .. import __version__

        print(f"diffjax {__version__}")
        return 0
    if not argv:
        raise errors.UserError(f"no command: give one of {', '.join(PROGRAMS)}, or --help")
    if argv[0] not in PROGRAMS:
        raise errors.unknown("command", argv[0], PROGRAMS)
    return importlib.import_module(f".{PROGRAMS[argv[0]][0]}", __name__).main(argv[1:])
