"""A prior with random weights, laid out as the ones that ship: for tests that need no sense in the pictures."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import zoo
from diffjax.convert import strict
from diffjax.zoo import first_stage
from diffjax.zoo.prior import build
from diffjax.zoo.vocabulary import Vocabulary
from experiments.configs.debug import config as debug

CONFIG = dataclasses.asdict(debug)


def params(seed=0, config=CONFIG):
    """Drawn with numpy, so that nothing is compiled: a fresh network would predict 0 whatever it sees anyway."""
    net, _ = build(config)
    return drawn(strict.shapes(net, *strict.image_inputs(net, config["size"], config["channels"])), seed)


def drawn(shapes, seed=0):
    """Parameters of these shapes, {path: shape}."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        noise = rng.standard_normal(shape).astype(np.float32)
        if path[-1] == "scale":
            return 1 + 0.1 * noise
        return 0.1 * noise if len(shape) == 1 else noise / np.sqrt(np.prod(shape[:-1]))

    flat = {path: jnp.asarray(draw(path, shape)) for path, shape in shapes.items()}
    return {"params": flax.traverse_util.unflatten_dict(flat)}


def write(folder, seed=0, config=CONFIG, class_names=zoo.bundled.FASHION_CLASSES):
    zoo.save(folder, params(seed, config), {"name": "tiny", "config": config, "class_names": list(class_names)})
    return folder


# --- of latents: 32x32 grey pictures as 16x16 latents -----------------------------------------------------------------

FIRST = {"kind": "kl", "size": 32, "channels": 1, "latent_channels": 2, "width": 4, "multipliers": [1, 1], "blocks": 1,
         "attention": [], "middle": False, "groups": 2}  # fmt: skip
LATENT = CONFIG | {"size": 16, "channels": 2, "width": 8, "groups": 2, "patch": 1, "multipliers": [1], "attention": [],
                   "autoencoder": "runs/first"}  # fmt: skip
WORDS = LATENT | {"network": "latent", "classes": 0, "vocabulary": 5, "words": 4, "boxes": 2, "box_classes": 3, "context": 8,
                  "depth": 1, "encoder_layers": 0, "attention": [1], "heads": 2}  # fmt: skip
VOCABULARY = Vocabulary(("", "a", "red", "bag", "two"), 4, ("", "bag", "coat"), 2)


def autoencoder(seed=0, config=FIRST, **units):
    """With random weights, of about unit variance in between."""
    net = first_stage.build(config)
    shapes = strict.shapes(net, jax.ShapeDtypeStruct((config["size"], config["size"], config["channels"]), np.float32))
    return first_stage.from_config(config, drawn(shapes, seed), **units)


def write_latent(folder, seed=0, config=LATENT, **units):
    auto = autoencoder(seed, **units)
    card = {"name": "tiny", "config": config, "autoencoder": first_stage.entry(auto, FIRST)}
    if config["classes"]:
        card["class_names"] = list(zoo.bundled.FASHION_CLASSES)
    else:
        card["vocabulary"] = VOCABULARY.entry()
    zoo.save(folder, params(seed, config), card, autoencoder=auto)
    return folder
