"""Chooses the default image size: small where that is enough, large where it is not.

Larger photos are the surest way to a better classifier, but time grows with their area. So the
cross-validated loss of a closed-form classifier for some small photos decides whether they are
worth it: docs/decisions/fine-tuning.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.commands.train_settings import Settings
from hogwear.data.cache import DecodingJob
from hogwear.data.decoding import FORMATS
from hogwear.data.loading import Loader
from hogwear.data.photos import Photos
from hogwear.data.pixels import Pixels
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
    settings: Settings, photos: Photos, loader: Loader, cluster: SingleMachine
) -> DecodingJob:
    """Start decoding the training photos at the size that rank 0 of a cluster chooses.

    Until that is known, they are decoded at SMALL: one CPU is busy with importing torch anyway.
    """
    sample = decode_sample(settings, photos) if cluster.rank == 0 else None
    decoding = loader.start(photos.train, SMALL)
    size = choose_size(settings, photos, sample) if sample else SMALL
    size = int(cluster.broadcast_bytes(0, str(size).encode()))
    if size == SMALL:
        return decoding
    decoding.cancel()
    return loader.start(photos.train, size)


def decode_sample(settings: Settings, photos: Photos) -> Pixels | None:
    """Some photos at SMALL; None where it is clear that SMALL is enough, or all there is."""
    train = photos.train
    if settings.arch in ONE_SIZE or len(train) > MANY:
        return None
    if median_side(settings, photos) <= (SMALL + LARGE) / 2:
        return None
    some = slice(None, None, 1 + len(train) // MOST_PHOTOS)
    return Loader(settings.cache, some, warns=False).load(train, SMALL)


def choose_size(settings: Settings, photos: Photos, sample: Pixels) -> int:
    """LARGE where the sample is hard to classify at SMALL; otherwise SMALL."""
    forecast = forecast_small(settings, photos, sample)
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


def forecast_small(settings: Settings, photos: Photos, sample: Pixels) -> Forecast | None:
    """The cross-validation of a closed-form classifier for a sample of the photos, at SMALL."""
    import torch  # takes seconds, while the workers decode

    import model
    from hogwear.training.heads import HeadFitter

    torch.set_num_threads(1)
    dtype = model.choose_dtype(settings.cache_dir)
    net = model.build(Hyperparameters.arch, len(photos.class_names), SMALL, dtype)
    net.load_pretrained()
    heads = HeadFitter(net, sample, SINGLE_MACHINE, Stop(), is_new=True)
    with Workers(settings.num_workers, lambda rank: heads.jobs) as workers:
        solved = heads.fit_heads(workers)
    return solved[0].forecast if solved else None
