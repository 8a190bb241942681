"""Names of a spatial transformer's arrays, which the official code of latent diffusion and diffusers share."""

from .strict import module, norm


def entries(at, name, depth, linear=False):
    """Entries of a transformer of `depth` blocks: ours below `at`, theirs below `name`.

    linear: the projections before and after the blocks are stored as matrices and not as 1 x 1 convolutions.
    """
    layout = "dense" if linear else "dense2"
    found = norm([at, "norm"], f"{name}.norm")
    found += module([at, "proj_in"], f"{name}.proj_in", layout) + module([at, "proj_out"], f"{name}.proj_out", layout)
    for n in range(depth):
        block, theirs = f"block_{n}", f"{name}.transformer_blocks.{n}"
        for i in (1, 2, 3):
            found += norm([at, block, f"norm_{i}"], f"{theirs}.norm{i}")
        for i in (1, 2):
            for part in "qkv":
                place = [at, block, f"attention_{i}", part]
                found += module(place, f"{theirs}.attn{i}.to_{part}", "dense", bias=False)
            found += module([at, block, f"attention_{i}", "out"], f"{theirs}.attn{i}.to_out.0", "dense")
        found += module([at, block, "feed", "first"], f"{theirs}.ff.net.0.proj", "dense")
        found += module([at, block, "feed", "second"], f"{theirs}.ff.net.2", "dense")
    return found
