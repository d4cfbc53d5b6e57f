"""``/v1/files``: what batches are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from headstock.errors import RequestError
from headstock.server.files import PART_BYTES, FileBook, StoredFile
from headstock.server.http.answers import json_answer
from headstock.server.http.context import Serving, owner_of

UPLOAD_DEADLINE_S = 600.0
"""A file that takes longer to arrive is refused. Seconds."""
FORM_BYTES = 64 * 1024
"""What a form may have beside the file. Bytes."""
MAX_LISTED = 10_000
PURPOSES = ("batch",)
FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": list(PURPOSES)},
                },
            }
        }
    },
}
"""What is uploaded, for the OpenAPI document."""


def make_router(serving: Serving, files: FileBook) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/files", tags=["files"])

    @router.post("", openapi_extra={"requestBody": FORM})
    async def upload(request: Request) -> Response:
        """Keep a file."""
        return json_answer(
            shown(await _keep(request, files, serving.settings.server.max_file_bytes))
        )

    @router.get("")
    async def all_files(
        request: Request,
        limit: int = MAX_LISTED,
        after: str | None = None,
        order: str = "desc",
        purpose: str | None = None,
    ) -> Response:
        """List the caller's files."""
        found = files.all(owner_of(request))
        if purpose is not None:
            found = [file for file in found if file.purpose == purpose]
        if order not in ("asc", "desc"):
            raise RequestError(
                f"order is {order[:16]!r}.", remedy="Use asc or desc.", field="order"
            )
        if order == "desc":
            found.reverse()
        return json_answer(page([shown(file) for file in found], limit, after, MAX_LISTED))

    @router.get("/{file_id}")
    async def describe(request: Request, file_id: str) -> Response:
        """Describe a file."""
        return json_answer(shown(files.find(owner_of(request), file_id)))

    @router.get("/{file_id}/content")
    async def content(request: Request, file_id: str) -> Response:
        """Return what is in a file."""
        owner = owner_of(request)
        file = files.find(owner, file_id)

        async def pieces() -> AsyncIterator[bytes]:
            for piece in files.read(owner, file):
                yield piece

        return StreamingResponse(
            pieces(),
            media_type="application/octet-stream",
            headers={"content-length": str(file.num_bytes)},
        )

    @router.delete("/{file_id}")
    async def delete(request: Request, file_id: str) -> Response:
        """Delete a file."""
        files.drop(owner_of(request), file_id)
        return json_answer({"id": file_id, "object": "file", "deleted": True})

    return router


def shown(file: StoredFile) -> dict[str, Any]:
    """Return a file as its owner sees it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def page(
    values: Sequence[dict[str, Any]], limit: int, after: str | None, most: int
) -> dict[str, Any]:
    """Return a part of a list.

    Raises:
        RequestError: The limit is none, or ``after`` is not in the list.
    """
    if not 1 <= limit <= most:
        raise RequestError(f"limit is {limit}.", remedy=f"Use 1 to {most}.", field="limit")
    ids = [value["id"] for value in values]
    if after is not None and after not in ids:
        raise RequestError(
            f"after is {after[:128]!r}, which is not in the list.",
            remedy="Use the last_id of the part before.",
            field="after",
        )
    begin = 0 if after is None else ids.index(after) + 1
    part = values[begin : begin + limit]
    return {
        "object": "list",
        "data": part,
        "first_id": part[0]["id"] if part else None,
        "last_id": part[-1]["id"] if part else None,
        "has_more": begin + limit < len(values),
    }


async def _keep(request: Request, files: FileBook, max_bytes: int) -> StoredFile:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise RequestError(
            f"The content type is {kind[:64]!r}.",
            remedy="Send a form: Content-Type: multipart/form-data.",
            code="invalid_content_type",
        )
    bounded = Request(request.scope, _Bounded(request, max_bytes + FORM_BYTES))
    try:
        async with asyncio.timeout(UPLOAD_DEADLINE_S):
            async with bounded.form(max_files=1, max_fields=8, max_part_size=FORM_BYTES) as form:
                file, purpose = form.get("file"), form.get("purpose")
                if not isinstance(file, UploadFile):
                    raise _missing("file", "a file")
                if purpose not in PURPOSES:
                    raise _missing("purpose", f"one of {', '.join(PURPOSES)}")
                name = (file.filename or "file")[:256]
                return await files.keep(owner_of(request), name, str(purpose), _pieces(file))
    except (HTTPException, MultiPartException) as error:
        why = error.detail if isinstance(error, HTTPException) else error.message
        raise RequestError(
            f"The form cannot be read: {why[:200]}",
            remedy="Send one file and its purpose as multipart/form-data.",
            code="invalid_http",
        ) from error
    except TimeoutError as error:
        raise RequestError(
            f"The file did not arrive within {UPLOAD_DEADLINE_S:.0f} s.",
            remedy="Try again.",
            code="request_timeout",
        ) from error


class _Bounded:
    """Receives a body that may not be larger than ``max_bytes``."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._receive = request.receive
        self._left = max_bytes
        self._max_bytes = max_bytes

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise RequestError(
                f"The body is larger than {self._max_bytes} bytes.",
                remedy="Split the file, or raise --max-file-bytes.",
                field="file",
                code="body_too_large",
            )
        return message


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(PART_BYTES):
        yield piece


def _missing(field: str, wanted: str) -> RequestError:
    return RequestError(f"{field} is missing or wrong.", remedy=f"Send {wanted}.", field=field)
