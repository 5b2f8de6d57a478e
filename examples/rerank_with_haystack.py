"""Put Haystack's documents in order with Notegrade, by Haystack's own ranker for Cohere.

    pip install cohere-haystack
    NOTEGRADE_URL=http://127.0.0.1:8000 NOTEGRADE_KEY=... python examples/rerank_with_haystack.py

Without keys on the service, any NOTEGRADE_KEY will do.
"""

import json
import os
import sys
from pathlib import Path

import httpx
from cohere.errors import GatewayTimeoutError, ServiceUnavailableError, TooManyRequestsError
from haystack import Document
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker

NOTES = Path(__file__).with_name("notes.jsonl")
# What may be over in a moment. A wrong key or a bad request is not: that should be seen.
PASSING = (ServiceUnavailableError, TooManyRequestsError, GatewayTimeoutError, httpx.TransportError)


def read_documents() -> list[Document]:
    """Read the notes, with the title as meta."""
    notes = [json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines()]
    return [Document(id=note["id"], content=note["body"], meta={"title": note["title"]}) for note in notes]


def retrieve(query: str) -> list[Document]:
    """Retrieve with BM25; any retriever works here."""
    store = InMemoryDocumentStore()
    store.write_documents(read_documents())
    found: list[Document] = InMemoryBM25Retriever(store, top_k=8).run(query=query)["documents"]
    return found


def make_ranker() -> CohereRanker:
    """Haystack's ranker, which asks Notegrade. It goes into a Pipeline as any other component does."""
    return CohereRanker(
        api_base_url=os.environ.get("NOTEGRADE_URL", "http://127.0.0.1:8000"),
        api_key=Secret.from_env_var("NOTEGRADE_KEY"),
        model="notegrade",  # passed over: a service has one checkpoint
        meta_fields_to_embed=["title"],
        top_k=3,
    )


def rank(query: str, documents: list[Document]) -> list[Document]:
    """Best first; in the retriever's order when nothing can be scored now."""
    try:
        ranked: list[Document] = make_ranker().run(query=query, documents=documents)["documents"]
    except PASSING as error:
        print(f"not reranked: {type(error).__name__}", file=sys.stderr)
        return documents
    return ranked


if __name__ == "__main__":
    query = sys.argv[1] if sys.argv[1:] else "quiet cafes to work in lisbon"
    for document in rank(query, retrieve(query)):
        print(f"{document.score:.4f}  {document.id}  {document.meta['title']}")
