"""How far samples are from held-out pictures: what the studies of priors share."""

from __future__ import annotations

import numpy as np


class Judge:
    """Of ``data.Images`` in the file ``path``, in AlexNet's features. labels: ``count`` of the test pictures' labels, each as
    often as the others; ``train``: the training pictures' features."""

    def __init__(self, images, path, count):
        from diffjax.cli import quality

        self.features = quality.alexnet()
        self.test, self.train = self.features(images.test), self.features(images.train)
        self.varieties = quality.groups(path, len(self.test))
        order = np.random.default_rng(0).permutation(len(self.test))
        self.labels = images.test_labels[order[np.arange(count) % len(order)]]

    def __call__(self, found) -> dict:
        """Of features: kernel distance to the test pictures with one standard error (each variety left out in turn), precision
        and recall against the training pictures."""
        from diffjax import metrics
        from diffjax.cli import quality

        kernel = lambda kept: metrics.kernel_distance(found, self.test[kept])
        precision, recall = metrics.precision_recall(found, self.train)
        return {"kernel": round(kernel(np.ones(len(self.test), bool)), 1),
                "kernel_error": round(quality.jackknife(kernel, self.varieties), 1),
                "precision": round(precision, 3), "recall": round(recall, 3)}  # fmt: skip
