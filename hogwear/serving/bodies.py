"""Reads the photos of a request: of a limited size, in a limited time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from hogwear.system.text import plural

MAX_PHOTOS = 64  # of a request
MAX_BYTES = 64 << 20  # of its body
BODY_SECONDS = 30.0  # for it to arrive
FIELD = "photos"  # of a form
MAX_FIELDS = 16  # of a form, that are not files; they are not used
UNNAMED = "photo"  # what a photo is called if the client does not say


@dataclass(frozen=True)
class Upload:
    """A photo of a request."""

    file: str  # what the client calls it
    content: bytes


class BadBody(Exception):
    """The body cannot be used: an HTTP status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def read_photos(request: Request, most: int = MAX_PHOTOS) -> list[Upload]:
    """The photos in the body of a request: one, or the files of a form. Raises BadBody."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not (is_form or kind.startswith("image/") or kind == "application/octet-stream"):
        raise BadBody(415, "send a photo as image/*, or a form (multipart/form-data) with files")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_BYTES:
        raise BadBody(413, f"the body has more than {MAX_BYTES >> 20} MB; send fewer photos")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if is_form:
                return await read_form(request, most)
            content = b"".join([chunk async for chunk in limit(request.stream())])
            return [Upload(UNNAMED, content)]
    except TimeoutError:
        raise BadBody(408, f"the body took more than {BODY_SECONDS:g} s to arrive") from None
    except ClientDisconnect:
        raise BadBody(400, "the client has gone") from None


async def read_form(request: Request, most: int) -> list[Upload]:
    """The files of a form."""
    parser = MultiPartParser(
        request.headers, limit(request.stream()), max_files=most + 1, max_fields=MAX_FIELDS
    )
    parser.spool_max_size = MAX_BYTES  # in memory, which is limited, and not on a disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", "")
        if "Too many files" in reason:
            raise BadBody(413, f"more than {plural(most, 'photo')}; send fewer") from None
        raise BadBody(400, "not a valid form (multipart/form-data)") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise BadBody(400, f"no file in the form; send photos in the field {FIELD}")
    if len(files) > most:
        raise BadBody(413, f"more than {plural(most, 'photo')}; send fewer")
    uploads = [Upload(file.filename or UNNAMED, await file.read()) for file in files]
    await form.close()
    return uploads


async def limit(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same stream. Raises BadBody if it is too long."""
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > MAX_BYTES:
            raise BadBody(413, f"the body has more than {MAX_BYTES >> 20} MB; send fewer photos")
        yield chunk
