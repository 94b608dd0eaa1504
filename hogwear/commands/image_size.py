"""Chooses the default image size: small where that is enough, large where it is not.

Larger photos are the surest way to a better classifier, but time grows with their area. So the
cross-validated loss of a closed-form classifier for some small photos decides whether they are
worth it: docs/decisions/fine-tuning.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.commands.train_settings import Settings
from hogwear.data.decoding import FORMATS
from hogwear.data.loading import Loader
from hogwear.data.photos import Photos
from hogwear.data.safe_decoder import read_all
from hogwear.system.signals import Stop
from hogwear.system.workers import Workers
from hogwear.training.hyperparameters import ONE_SIZE, Hyperparameters

if TYPE_CHECKING:
    from hogwear.training.discriminant import Forecast

SMALL, LARGE = 160, 224
MOST_PHOTOS = 300  # that are classified, which takes a second or two
MOST_HEADERS = 100  # of files that are read, to find the median size of the photos
HARD = 0.05  # cross-entropy, in nats, from which larger photos are worth their time
MANY = 50_000  # with more training photos than this, larger ones would take too long


def choose_image_size(
    settings: Settings, photos: Photos, defaults: Hyperparameters, cluster: SingleMachine
) -> Hyperparameters:
    """The defaults, with the image size that rank 0 of a cluster has chosen."""
    size = choose_size(settings, photos, defaults) if cluster.rank == 0 else 0
    size = int(cluster.broadcast_bytes(0, str(size).encode()))
    return replace(defaults, image_size=size)


def choose_size(settings: Settings, photos: Photos, defaults: Hyperparameters) -> int:
    """LARGE, if the photos are large enough and hard to classify at SMALL; otherwise SMALL."""
    if defaults.arch in ONE_SIZE or len(photos.train) > MANY:
        return SMALL
    if median_side(settings, photos) <= (SMALL + LARGE) / 2:
        return SMALL
    forecast = forecast_small(settings, photos, defaults)
    if not forecast or forecast.loss < HARD:
        return SMALL
    print(
        f"Image size: {LARGE} px; at {SMALL} px, the cross-validated loss of {forecast.photos} "
        f"photos is {forecast.loss:.3f}, not below {HARD}."
    )
    return LARGE


def median_side(settings: Settings, photos: Photos) -> float:
    """The median of the photos' longer sides, in pixels; 0 if no photo can be read."""

    def read_side(file: BinaryIO) -> int:
        return max(Image.open(file, formats=FORMATS).size)

    split = photos.train
    mask = np.arange(len(split)) % (1 + len(split) // MOST_HEADERS) == 0
    sides = read_all(split.paths.where(mask), split.root, settings.limits, read_side, "measuring")
    return float(np.median([side for _, side in sides if not isinstance(side, str)] or [0]))


def forecast_small(
    settings: Settings, photos: Photos, defaults: Hyperparameters
) -> Forecast | None:
    """The cross-validation of a closed-form classifier for some of the photos, at SMALL."""
    every = 1 + len(photos.train) // MOST_PHOTOS
    loader = Loader(settings.cache, slice(None, None, every), warns=False)
    decoding = loader.start(photos.train, SMALL)
    import torch  # takes seconds, while the workers decode

    import model
    from hogwear.training.heads import HeadFitter

    torch.set_num_threads(1)
    pixels = loader.finish(decoding)
    dtype = model.choose_dtype(settings.cache_dir)
    net = model.build(defaults.arch, len(photos.class_names), SMALL, dtype)
    net.load_pretrained()
    heads = HeadFitter(net, pixels, SINGLE_MACHINE, Stop(), is_new=True)
    with Workers(settings.num_workers, lambda rank: heads.jobs) as workers:
        solved = heads.fit_heads(workers)
    return solved[0].forecast if solved else None
