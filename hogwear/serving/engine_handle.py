"""An engine as the application sees it: a process that answers requests, or is gone."""

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import hogwear
from hogwear.serving.messages import Answer, Failed, Ready, Request
from hogwear.system.errors import BadInput, NoCheckpoint

COMMAND = "hogwear.commands.serving_engine"
STOP_SECONDS = 10.0  # for an engine to end by itself


class EngineGone(Exception):
    """The process has ended before it answered."""


class EngineHandle:
    """Starts an engine, sends it requests, and awaits the answers."""

    def __init__(self, settings: dict[str, object]) -> None:
        """`settings` are those of the command serving_engine."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", COMMAND, str(theirs.fileno()), json.dumps(settings)]
        # In a session of its own, so that Ctrl-C reaches the application only
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(hogwear.__file__).parents[1])},
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.numbers = itertools.count()
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.pending: dict[int, asyncio.Future[Answer]] = {}
        self.is_gone = False
        asyncio.get_running_loop().add_reader(self.connection.fileno(), self.receive)

    async def load(self) -> Ready:
        """Wait until the checkpoint is loaded. BadInput if it cannot be used."""
        try:
            return await self.ready
        except EngineGone:
            raise BadInput("the process that loads the checkpoint was killed; try again") from None

    async def answer(self, job: str, file: str, content: bytes) -> Answer:
        """The answer for one photo. Raises EngineGone."""
        if self.is_gone:
            raise EngineGone
        number = next(self.numbers)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pending[number] = future
        try:
            self.connection.send(Request(number, job, file, content))
        except OSError:
            self.lose()
        try:
            return await future
        finally:
            self.pending.pop(number, None)

    def receive(self) -> None:
        """Resolve what has been answered."""
        try:
            while self.connection.poll():
                self.handle(self.connection.recv())
        except (EOFError, OSError):
            self.lose()

    def handle(self, message: Ready | Failed | Answer) -> None:
        if isinstance(message, Answer):
            future = self.pending.get(message.number)
            if future and not future.done():  # the client may have gone away
                future.set_result(message)
        elif isinstance(message, Ready):
            self.ready.set_result(message)
        else:
            kind = NoCheckpoint if message.exit_code == NoCheckpoint.exit_code else BadInput
            self.ready.set_exception(kind(message.message))

    def lose(self) -> None:
        """The process is gone: nothing will be answered any more."""
        if self.is_gone:
            return
        self.is_gone = True
        asyncio.get_running_loop().remove_reader(self.connection.fileno())
        if not self.ready.done():
            self.ready.set_exception(EngineGone())
        for future in self.pending.values():
            if not future.done():
                future.set_exception(EngineGone())

    async def close(self) -> None:
        """End the process once everything has been answered."""
        waiting = [future for future in self.pending.values() if not future.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=STOP_SECONDS)
        self.lose()
        self.connection.close()  # the engine ends then
        if self.ready.done() and not self.ready.cancelled():
            self.ready.exception()  # it may never have been awaited
        for _ in range(round(10 * STOP_SECONDS)):
            if self.process.poll() is not None:
                return
            await asyncio.sleep(0.1)
        self.process.kill()
        self.process.wait()
