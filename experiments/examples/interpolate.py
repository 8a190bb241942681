"""Between two images, through their latents: ``python -m experiments.examples.interpolate`` (needs the extra ``ode``).

Both are carried up the probability flow to noise, which the flow can undo; the arc between the two noises is walked, and each
point of it carried down again (Song et al. 2021, section 4.3). Writes interpolated.png.
"""

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import flow
from experiments.tools.study import grid


def main(points=5, rtol=1e-4, out="interpolated.png", pairs=((0, 4), (1, 2))):
    prior = dj.zoo.load("fashion32")
    images = jnp.asarray(dj.zoo.bundled.images("fashion")[0])
    how = dj.adaptive.Adaptive(rtol=rtol, atol=rtol)
    shares = np.linspace(0, 1, points, dtype=np.float32)
    denoise = prior.denoiser()

    def between(a, b):  # not jitted as a whole: up, back and down are one program, which any image finds again
        latents = [flow.encode(denoise, x, how) for x in (a, b)]
        path = jax.vmap(flow.slerp, (None, None, 0))(latents[0].x, latents[1].x, shares)
        strip = [flow.decode(denoise, x_T, how).x for x_T in path]
        return np.stack(strip), np.array([latent.round_trip for latent in latents]), np.asarray(path)

    strips, errors, arcs = zip(*(between(images[n], images[m]) for n, m in pairs))
    print(f"round trip: at most {max(float(e.max()) for e in errors):.1e} of [-1, 1]")
    columns = [(f"{share:.2f}", [strip[n] for strip in strips]) for n, share in enumerate(shares)]
    ends = [("image", [images[n] for n, _ in pairs]), ("image", [images[m] for _, m in pairs])]
    grid([ends[0], *columns, ends[1]], out)
    return np.stack(strips), errors, np.stack(arcs)


if __name__ == "__main__":
    main()
