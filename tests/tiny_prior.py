"""A prior with random weights, laid out as the ones that ship: for tests that need no sense in the pictures."""

import dataclasses

import flax
import jax.numpy as jnp
import numpy as np

from diffjax import zoo
from diffjax.convert import strict
from diffjax.zoo.prior import build
from experiments.configs.debug import config as debug

CONFIG = dataclasses.asdict(debug)


def params(seed=0, config=CONFIG):
    """Drawn with numpy, so that nothing is compiled: a fresh network would predict 0 whatever it sees anyway."""
    net, _ = build(config)
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        noise = rng.standard_normal(shape).astype(np.float32)
        if path[-1] == "scale":
            return 1 + 0.1 * noise
        return 0.1 * noise if len(shape) == 1 else noise / np.sqrt(np.prod(shape[:-1]))

    shapes = strict.shapes(net, *strict.image_inputs(net, config["size"], config["channels"]))
    flat = {path: jnp.asarray(draw(path, shape)) for path, shape in shapes.items()}
    return {"params": flax.traverse_util.unflatten_dict(flat)}


def write(folder, seed=0, config=CONFIG, class_names=zoo.bundled.FASHION_CLASSES):
    zoo.save(folder, params(seed, config), {"name": "tiny", "config": config, "class_names": list(class_names)})
    return folder
