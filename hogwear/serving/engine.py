"""The engine: a process that has loaded a checkpoint, and workers that decode and predict photos.

The workers are forked from the engine, so another one takes milliseconds. A photo that crashes its
decoder or takes too long kills its worker; the photos that were predicted together with it are then
tried once more, each alone. The engine ends when the application does, and its workers with it.
"""

import io
import math
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hogwear.data import decoding
from hogwear.data.decoding import Limits
from hogwear.data.safe_decoder import describe_death, limit_resources, read_guarded
from hogwear.evaluation.pictures import overlay
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.evaluation.trained_model import TrainedModel
from hogwear.serving.messages import EXPLAIN, Answer, Ready, Request
from hogwear.system.arrays import UInt8Array
from hogwear.system.workers import Jobs, Slot, Workers

MAX_BATCH = 16  # photos that are predicted together


@dataclass(frozen=True)
class Item:
    """A request, and whether it was in flight when a worker died."""

    request: Request
    was_lost: bool = False

    @property
    def is_alone(self) -> bool:
        return self.was_lost or self.request.job == EXPLAIN


class Engine:
    """Passes requests from `connection` to the workers, and their answers back."""

    def __init__(
        self, connection: Connection, predictor: "Predictor", processes: int, limits: Limits
    ) -> None:
        self.connection, self.predictor, self.limits = connection, predictor, limits
        self.queue: deque[Item] = deque()
        self.batches: dict[int, list[Item]] = {}  # in flight, by rank
        self.workers = Workers(processes, self.prepare)

    def prepare(self, rank: int) -> Jobs:
        """In a worker: its job."""
        self.connection.close()  # so that the application notices when the engine is gone
        torch.set_num_threads(1)
        limit_resources(self.limits)
        return {"answer": self.predictor.answer}  # type: ignore[dict-item]

    def run(self) -> None:
        """Until the application has closed the connection."""
        with self.workers:
            trained = self.predictor.trained
            self.connection.send(Ready(trained.sha256, trained.class_names))
            while True:
                slots = {slot.pipe: slot for slot in self.workers.slots}
                for ready in wait([self.connection, *slots]):
                    if ready is not self.connection:
                        self.collect(slots[ready])  # type: ignore[index]
                    elif not self.receive():
                        return
                self.hand_out()

    def receive(self) -> bool:
        """Queue the requests that have arrived. False if there will be no more."""
        try:
            while self.connection.poll():
                self.queue.append(Item(self.connection.recv()))
        except (EOFError, ConnectionResetError):
            return False
        return True

    def collect(self, slot: Slot) -> None:
        """Send the answers of a worker, or replace it."""
        rank = self.workers.slots.index(slot)
        try:
            _, answers = slot.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.revive(slot, self.batches.pop(rank, []))
            return
        batch = self.batches.pop(rank)
        if isinstance(answers, Exception):
            answers = [reject(item.request, decoding.describe_error(answers)) for item in batch]
        for answer in answers:
            self.connection.send(answer)

    def revive(self, slot: Slot, lost: list[Item]) -> None:
        """Start another worker, and try what was lost once more, unless it was its fault."""
        code = self.workers.bury(slot)
        self.workers.start(slot)
        reason = describe_death(code, self.limits)
        if len(lost) == 1 and (reason or lost[0].was_lost):
            reason = reason or f"its worker was killed ({signal.Signals(-code).name})"
            self.connection.send(reject(lost[0].request, reason))
            return
        self.queue.extendleft(replace(item, was_lost=True) for item in reversed(lost))

    def hand_out(self) -> None:
        """Give each idle worker its share of the queue."""
        idle = [rank for rank in range(len(self.workers.slots)) if rank not in self.batches]
        for number, rank in enumerate(idle):
            if not self.queue:
                return
            share = math.ceil(len(self.queue) / (len(idle) - number))
            batch = self.take(min(share, MAX_BATCH))
            self.batches[rank] = batch
            requests = [item.request for item in batch]
            slot = self.workers.slots[rank]
            with suppress(BrokenPipeError):  # it has just died: `collect` notices
                slot.pipe.send(("answer", requests))

    def take(self, most: int) -> list[Item]:
        """The first items of the queue; one that has to be alone is."""
        batch = [self.queue.popleft()]
        while self.queue and len(batch) < most:
            if batch[0].is_alone or self.queue[0].is_alone:
                break
            batch.append(self.queue.popleft())
        return batch


@dataclass(frozen=True)
class Predictor:
    """What a worker does."""

    trained: TrainedModel
    limits: Limits
    unknown_rate: float

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to some requests, in order."""
        photos = [self.decode(request) for request in requests]
        images = [photo.image for photo in photos if photo.image is not None]
        with torch.inference_mode():
            logits = np.empty((0, len(self.trained.class_names)), np.float32)
            if images:
                logits = self.trained.net(torch.from_numpy(np.stack(images))).numpy()
            predictions = self.trained.predict(photos, logits, self.unknown_rate)
            return [
                self.explain(request, prediction)
                if request.job == EXPLAIN
                else Answer(request.number, prediction.to_json())
                for request, prediction in zip(requests, predictions, strict=True)
            ]

    def decode(self, request: Request) -> Photo:
        """The photo, or why it cannot be read."""
        size = self.trained.image_size

        def decode() -> UInt8Array:
            return decoding.decode(io.BytesIO(request.content), size, self.limits)

        found = read_guarded(decode, self.limits) if request.content else "empty file"
        file = Path(request.file)
        if isinstance(found, str):
            return Photo(file, None, None, error=found)
        return Photo(file, None, found)

    def explain(self, request: Request, prediction: Prediction) -> Answer:
        """A picture of what the network looked at, as in the report of eval."""
        image = prediction.photo.image
        if image is None:
            return Answer(request.number, prediction.to_json())
        predicted = torch.tensor([self.trained.class_names.index(prediction.predicted)])
        pixels = torch.from_numpy(image)[None]
        [activation_map] = self.trained.net.class_activation_map(pixels, predicted).numpy()
        Image.fromarray(overlay(image, activation_map)).save(picture := io.BytesIO(), "PNG")
        return Answer(request.number, {}, picture.getvalue())


def reject(request: Request, reason: str) -> Answer:
    """The answer for a photo that could not be predicted."""
    photo = Photo(Path(request.file), None, None, error=reason)
    return Answer(request.number, Prediction(photo, {}).to_json())
