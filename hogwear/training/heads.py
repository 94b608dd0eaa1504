"""Heads in closed form: the first classifier of a run, and a better head at its end."""

import time
from dataclasses import dataclass

import torch

from hogwear.cluster.peers import SingleMachine
from hogwear.data.pixels import Pixels
from hogwear.data.safe_decoder import show_progress
from hogwear.evaluation import calibration
from hogwear.networks.network import Network
from hogwear.system.signals import Stop
from hogwear.system.workers import Workers
from hogwear.training.closed_form import Features
from hogwear.training.discriminant import Forecast
from hogwear.training.history import REFIT, HistoryRow
from hogwear.training.validation import Validator


@dataclass(frozen=True)
class HeadSolver:
    """Solves the head of a network for its training photos, unless a stop is requested."""

    net: Network
    photos: Pixels
    workers: int
    cluster: SingleMachine
    stop: Stop

    def solve(self, keep_features: bool) -> tuple[Forecast | None, float] | None:
        """Replace the head by that in closed form, the same on all machines.

        Returns its forecast, and the photos per second of this machine. None if a stop was
        requested: the head is then as it was. With `keep_features`, they are kept in the cache.
        """
        started = time.monotonic()
        features = Features.open(self.net, self.photos, keep_features)
        hide = True if self.cluster.rank else None
        with (
            Workers(self.workers, lambda rank: {"features": features.job(self.net)}) as pool,
            show_progress(len(features.missing), "computing features", hide) as bar,
        ):
            for count in features.compute(pool, lambda: self.stop.requested):
                bar.update(count)
                self.cluster.heartbeat()
        if self.stop.requested:
            return None
        classifier = features.fit(self.cluster)
        with torch.no_grad():
            self.net.head.weight.copy_(torch.from_numpy(classifier.weight))
            self.net.head.bias.copy_(torch.from_numpy(classifier.bias))
        self.cluster.broadcast_parameters()
        return classifier.forecast, len(self.photos) / (time.monotonic() - started)

    def refit(self, validator: Validator) -> bool:
        """Validate the best weights with another head: the mean of theirs and one solved anew.

        Both are calibrated before, so the mean gives the product of their probabilities. False if a
        stop was requested before that. The network then has the weights that are best.
        """
        history, head = validator.state.history, self.net.head
        assert history.best
        self.net.load_state_dict(history.best.weights)
        logits, labels = validator.predict()
        before = [p.detach().clone() for p in head.parameters()]
        solved = self.solve(keep_features=False)
        if solved:
            solved_logits, _ = validator.predict()
            share = 0.5 / calibration.fit_temperature(logits, labels)
            solved_share = 0.5 / calibration.fit_temperature(solved_logits, labels)
            with torch.no_grad():
                for p, old in zip(head.parameters(), before, strict=True):
                    p.mul_(solved_share).add_(old, alpha=share)
            mean = share * logits + solved_share * solved_logits
            row = HistoryRow(history.epochs, REFIT, images_per_second=solved[1])
            validator.record(row, (mean, labels))
        self.net.load_state_dict(history.best.weights)
        return solved is not None
