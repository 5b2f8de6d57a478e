"""The routes that make vectors of notes ahead of the queries that will need them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.contract.prompt import Note
from service.contract.text import canonicalize
from service.errors import OverloadedError, VectorsOffError
from service.http.answering import Api, documents, to_json
from service.http.auth import Caller, require
from service.http.receive import unless_disconnected
from service.http.schemas import Notes, Wire
from service.vectors.encoding import Encoding

# An idle service encodes a few notes a second, a busy one none.
RETRY_AFTER_S = 5.0


class NotesBody(Wire):
    """Notes to encode."""

    notes: Notes


class OfferedBody(BaseModel):
    """What became of the notes."""

    accepted: int = Field(description="Notes that wait to be encoded now")
    known: int = Field(description="Notes that have vectors, or waited already")


class EncodingBody(BaseModel):
    """How far this replica is with the notes that it was given, since its start."""

    backlog: int = Field(description="Notes that wait")
    stored: int = Field(description="Notes whose vectors were stored")
    failed: int = Field(description="Notes that could not be encoded or stored; send them again")


def build_note_router(api: Api) -> APIRouter:
    """Build the routes of note vectors."""
    router = APIRouter()
    may_score = Depends(require(api.keyring, "score"))
    off = {404: "This service reads notes as text only"}

    def encoding() -> Encoding:
        if api.backend.encoding is None:
            raise VectorsOffError(
                "no vectors are made: the checkpoint has no encoder, or NOTEGRADE_READING is text"
            )
        return api.backend.encoding

    @router.post(
        "/notes",
        tags=["notes"],
        status_code=202,
        response_model=OfferedBody,
        **documents(NotesBody, {**off, 503: "The backlog is full; see Retry-After"}),
    )
    async def offer(request: Request, caller: Annotated[Caller, may_score]) -> Response:
        """Queue notes to be encoded while the service is idle. Those that have vectors are not encoded again.

        A note counts as a pair towards the key's rate limit.
        """
        found = encoding()
        body = await api.read(request, NotesBody)
        if api.pairs_limiter:
            await api.pairs_limiter.count(caller.key_id, len(body.notes))
        notes = [Note(canonicalize(note.title), canonicalize(note.body)) for note in body.notes]
        offered = await unless_disconnected(request, found.offer(notes))
        if offered.refused:
            raise OverloadedError(
                f"the backlog is full: {offered.accepted} of the {len(notes)} notes were accepted and "
                f"{offered.known} were known; send the same request again later",
                RETRY_AFTER_S,
            )
        return to_json(OfferedBody(accepted=offered.accepted, known=offered.known), status=202)

    @router.get("/notes/encoding", tags=["notes"], response_model=EncodingBody, **documents(problems=off))
    async def status(_caller: Annotated[Caller, may_score]) -> Response:
        """Return how far encoding is."""
        now = encoding().status()
        return to_json(EncodingBody(backlog=now.backlog, stored=now.stored, failed=now.failed))

    return router
