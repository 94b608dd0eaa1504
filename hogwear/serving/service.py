"""Which engine answers: that of the newest usable checkpoint; a dead one is replaced."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from hogwear.serving.engine_handle import EngineGone, EngineHandle
from hogwear.serving.messages import Answer, Ready
from hogwear.system.artifacts import CHECKPOINT
from hogwear.system.errors import BadInput
from hogwear.system.text import escape

POLL_SECONDS = 1.0  # between two looks at the checkpoint file
MAX_PHOTOS = 256  # that wait for an answer or get one
MAX_BYTES = 256 << 20  # of them
RETRIES = 1  # of a photo whose engine has gone

Stamp = tuple[int, int, int] | None  # of a file: it changes when the file does


class Busy(Exception):
    """Too many photos are waiting."""


class Service:
    """Answers requests with the checkpoint in a folder, whatever happens to it.

    A new checkpoint is loaded by a new engine while the old one answers. If it cannot be used, the
    old one stays.
    """

    engine: EngineHandle
    loaded: Ready

    def __init__(self, settings: dict[str, object], log: Callable[[str], None] = print) -> None:
        """`settings` are those of the command serving_engine."""
        self.settings, self.log = settings, log
        self.file = Path(str(settings["model_dir"])) / CHECKPOINT
        self.photos = self.bytes = 0  # that wait for an answer or get one
        self.restarts = 0
        self.starting = asyncio.Lock()

    async def start(self) -> None:
        """Load the checkpoint. BadInput or NoCheckpoint if that is not possible."""
        self.stamp = read_stamp(self.file)
        self.engine, self.loaded = await self.load()

    async def load(self) -> tuple[EngineHandle, Ready]:
        """A new engine. BadInput if it cannot use the checkpoint."""
        engine = EngineHandle(self.settings)
        try:
            return engine, await engine.load()
        except BaseException:
            await engine.close()
            raise

    async def stop(self) -> None:
        """End once everything has been answered."""
        await self.engine.close()

    def reserve(self, photos: int, size: int) -> None:
        """Make room for photos with this number of bytes. Raises Busy if there is none."""
        if self.photos + photos > MAX_PHOTOS or self.bytes + size > MAX_BYTES:
            raise Busy
        self.photos += photos
        self.bytes += size

    def release(self, photos: int, size: int) -> None:
        self.photos -= photos
        self.bytes -= size

    async def answer(self, job: str, file: str, content: bytes) -> Answer:
        """The answer for one photo. Raises Busy while no engine can be started."""
        for _ in range(1 + RETRIES):
            engine = self.engine
            try:
                return await engine.answer(job, file, content)
            except EngineGone:
                await self.restart(engine)
        raise Busy

    async def restart(self, gone: EngineHandle) -> None:
        """Another engine in place of one that was killed."""
        async with self.starting:
            if self.engine is not gone:
                return  # someone else was faster
            self.log("The process that predicts has ended unexpectedly; starting another.")
            self.restarts += 1
            await gone.close()
            try:
                self.engine, self.loaded = await self.load()
            except BadInput as error:
                self.log(escape(f"Error: {error}."))
                raise Busy from None

    async def watch(self) -> None:
        """Look for a new checkpoint, for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            stamp = read_stamp(self.file)
            if stamp is None or stamp == self.stamp:
                continue
            self.stamp = stamp
            async with self.starting:
                old = self.engine
                try:
                    self.engine, self.loaded = await self.load()
                except BadInput as error:
                    self.log(escape(f"Not used, the old checkpoint stays in service: {error}."))
                    continue
                self.log(escape(f"New checkpoint: {self.describe()}."))
            await old.close()

    def describe(self) -> str:
        names = ", ".join(self.loaded.class_names)
        return f"{self.file} ({self.loaded.sha256[:16]}), classes {names}"


def read_stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
