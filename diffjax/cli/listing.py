"""Say what there is: ``diffjax list``."""

from __future__ import annotations

from . import errors, options


def main(argv=None) -> int:
    return errors.run(lambda: _main(argv))


def _main(argv) -> int:
    options.Parser("list", "Say what each method, mask, task, prior and set of images is.").parse(argv)
    print(listing())
    return 0


def listing() -> str:
    """What the command prints."""
    from .. import registry, zoo
    from ..operators import masks
    from . import tables, tasks

    also = lambda name: ", ".join(a for a, n in masks.ALIASES.items() if n == name) or None
    size = lambda shape: "x".join(map(str, shape))
    bundled = {name: zoo.bundled.images(name)[0] for name in zoo.bundled.NAMES}
    with errors.library_errors():
        priors = [zoo.load(name) for name in zoo.names()]
    sections = {
        "methods": [
            {
                "--method": name,
                "does": "inpainting" if e.tasks == registry.INPAINTING else "any task",
                "latents": None if e.latents is None else "yes",
                "noise": e.method.noise,
                "steps": e.steps,
                "what it is": f"{e.about} ({e.method.paper})",
            }
            for name, e in registry.METHODS.items()
        ],
        "masks (or a PNG, white = known)": [
            {"--mask": name, "also called": also(name), "what it is": about} for name, (_, about) in masks.MASKS.items()
        ],
        "tasks (every mask is one too)": [
            {"--task": name, "what it is": task.about} for name, task in tasks.TASKS.items() if name not in masks.MASKS
        ],
        "priors (or the folder of a training run)": [
            {
                "--prior": p.name,
                "images": size(p.image_shape),
                "in latents": p.autoencoder and size(p.shape),
                "--label": ", ".join(p.class_names) or None,
            }
            for p in priors
        ],
        "images (or a file, a folder, an .npy array)": [
            {"--images": f"bundled:{name}", "how many": len(x), "size": size(x.shape[1:])} for name, x in bundled.items()
        ],
    }
    return "\n\n".join(f"{title}\n{tables.render(lines) if lines else 'none'}" for title, lines in sections.items())
