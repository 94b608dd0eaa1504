"""Peers that train a linear classifier on features of the network, which itself is not trained.

--epochs has no effect on them.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.peers.options import Clock, Options, measure, result
from hogwear.data import contents, dataset
from hogwear.data.cache import PhotoCache
from hogwear.data.folders import DataFolder
from hogwear.data.photos import Split
from hogwear.system.arrays import Float32Array, Int64Array

C_GRID = np.logspace(-2, 2, 5)  # inverse regularisation strengths to choose from
BATCH = 32
LAST_LEVEL = 1280  # of the network's features, those of its last layer; they stand at the end

LabelledFeatures = tuple[Float32Array, Int64Array]  # features (N, 1280), classes (N,)
Extract = Callable[[str], LabelledFeatures]  # from the photos of a split


def frozen_features(options: Options) -> dict[str, Any]:
    """scikit-learn's LogisticRegression on features of the network, which is not trained.

    One pass over the photos, without augmentation.
    """
    from torch.utils.data import DataLoader

    from bench.peers.shared import network, photos  # torchvision takes a second to import

    net = network(options).eval()
    net._fc = nn.Identity()

    def extract(split: str) -> LabelledFeatures:
        batches = DataLoader(photos(options, split), BATCH, num_workers=options.workers)
        with torch.inference_mode():
            parts = [(net(images), labels) for images, labels in batches]
        outputs, labels = zip(*parts, strict=True)
        return torch.cat(outputs).numpy(), torch.cat(labels).numpy()

    return train_on_features(options, extract)


def fast_frozen_features(options: Options) -> dict[str, Any]:
    """The same with Hogwear's decoding and forward pass, in `--workers` processes.

    What it gains over frozen_features is Hogwear's speed; what Hogwear gains over it is method.
    Photos are letterboxed instead of cropped, which is the same for square ones.
    """
    import model
    from hogwear.system import machine
    from hogwear.system.workers import Workers

    machine.keep_freed_memory()
    torch.set_num_threads(1)  # in the workers, too; a process with more must not fork
    with tempfile.TemporaryDirectory() as name:
        cache = PhotoCache(Path(name), processes=options.workers)
        net = model.build("efficientnet_lite0", 2, options.size, model.choose_dtype(cache.folder))
        net.load_pretrained()

        def extract(split: str) -> LabelledFeatures:
            pixels = cache.open(list_photos(options, split, cache), options.size)

            def features(start: int) -> Float32Array:
                batch = pixels.images[pixels.rows[start : start + BATCH]]
                with torch.inference_mode():
                    return last_level(net.features(torch.from_numpy(batch))).numpy()

            starts = range(0, len(pixels), BATCH)
            with Workers(options.workers, lambda rank: {"features": features}) as workers:
                parts = dict(workers.run("features", starts))
            return np.concatenate([parts[start] for start in starts]), pixels.labels

        return train_on_features(options, extract)


def list_photos(options: Options, split: str, cache: PhotoCache) -> Split:
    """The photos of a split, as Hogwear lists them. The split may be a link, unlike in Hogwear."""
    root = (options.photos / split).resolve()
    paths, labels = dataset.label_photos(root, DataFolder(root, ()).find_classes(root).values())
    hashes, unread = contents.read_contents(paths, root, cache.folder, cache.limits)
    return Split(split, paths, labels, root, hashes, np.zeros_like(hashes), unread)


def last_level(features: Tensor) -> Tensor:
    """(N, D) features of one or of several levels -> (N, 1280)."""
    return features[:, -LAST_LEVEL:]


def train_on_features(options: Options, extract: Extract) -> dict[str, Any]:
    clock = Clock()
    clock.start()
    train = extract("train")
    clock.stop()
    classifier = fit_logistic_regression(train, extract("val"))
    seconds = options.seconds()
    features, labels = extract("test")
    logits = (
        torch.from_numpy(classifier.predict_proba(features)).clip(1e-15).log()
    )  # as scikit-learn
    rate = len(train[0]) / clock.seconds
    return result(measure(logits, torch.from_numpy(labels)), rate, seconds)


def fit_logistic_regression(train: LabelledFeatures, val: LabelledFeatures) -> Any:
    """Fit on train with each C of C_GRID, and choose the most accurate on val, or the smallest C.

    Features are standardised: that takes fewer iterations, and on fashion5 and clothing10 it was as
    accurate on val or more.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(*train)
        for C in C_GRID
    ]
    return max(fitted, key=lambda classifier: classifier.score(*val))
