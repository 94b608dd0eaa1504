"""Serve the model over HTTP: a page to drop photos on, and an API.

python -m hogwear.commands.serve                    # http://127.0.0.1:8000
python -m hogwear.commands.serve --host 0.0.0.0 --token-file secret.txt
"""

import asyncio
import logging
import socket
from dataclasses import dataclass
from pathlib import Path

from hogwear.commands.shared_settings import UNKNOWN_RATE
from hogwear.data.decoding import LIMITS
from hogwear.serving.access import Access, is_loopback
from hogwear.serving.application import Application
from hogwear.serving.server import listen, serve
from hogwear.serving.service import Service
from hogwear.system import command
from hogwear.system.errors import BadInput
from hogwear.system.flags import Range, flag
from hogwear.system.text import escape, is_safe

MIN_TOKEN = 16  # characters


@dataclass(frozen=True)
class Settings:
    """Serve model/checkpoint.pt over HTTP: a page to drop photos on, and an API.

    A new checkpoint is picked up while the server runs.
    """

    model_dir: Path = flag("folder with checkpoint.pt", Path("model"))
    cache_dir: Path = flag("folder in which the fastest precision is remembered", Path(".cache"))
    host: str = flag("address to listen on", "127.0.0.1")
    port: int = flag("port to listen on", 8000, Range(1, 65536))
    token: str | None = flag(
        "what clients send as Authorization: Bearer TOKEN; better use --token-file",
        None,
        default_help="none",
    )
    token_file: Path | None = flag("file with the token", None, default_help="none")
    no_token: bool = flag(
        "listen on --host without a token: anyone who can reach it may ask",
        False,
        default_help="off",
    )
    unknown_rate: float = UNKNOWN_RATE
    max_megapixels: int = flag(
        "refuse photos with more megapixels than this", LIMITS.megapixels, Range(1, 100_001)
    )


def main(settings: Settings) -> None:
    token = read_token(settings)
    logging.disable()  # everything that people need is printed
    try:
        listening = listen(settings.host, settings.port)
    except OSError as error:
        raise BadInput(
            f"--host, --port: cannot listen on {settings.host}:{settings.port} "
            f"({error.strerror}); give an address of this machine and a free port"
        ) from None
    asyncio.run(run(settings, Access(settings.host, token), listening))


async def run(settings: Settings, access: Access, listening: socket.socket) -> None:
    service = Service(
        {
            "model_dir": str(settings.model_dir),
            "cache_dir": str(settings.cache_dir),
            "unknown_rate": settings.unknown_rate,
            "max_megapixels": settings.max_megapixels,
            "max_megabytes": LIMITS.megabytes,
        }
    )
    await service.start()
    listening.listen()  # who connects now waits a moment
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # an address to open
    name = f"[{host}]" if ":" in host else host
    print(escape(f"Serving {service.describe()}"))
    print(f"at http://{name}:{port}. Ctrl-C stops.", flush=True)
    await serve(Application(service, access).app, listening)
    print("Stopped.")


def read_token(settings: Settings) -> str | None:
    """The token that clients need. BadInput if there is none, but anyone could connect."""
    token = settings.token
    if settings.token_file:
        try:
            token = settings.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text"
            raise BadInput(f"--token-file {settings.token_file}: {reason}") from None
    if token is not None and not (len(token) >= MIN_TOKEN and token.isascii() and is_safe(token)):
        raise BadInput(f"--token: expected at least {MIN_TOKEN} printable ASCII characters")
    if token is None and not (settings.no_token or is_loopback(settings.host)):
        raise BadInput(
            f"--host {settings.host}: others can connect, so clients need a token: "
            "give one with --token-file"
        )
    return token


if __name__ == "__main__":
    command.run(main, Settings)
