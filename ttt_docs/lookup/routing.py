"""The way a question goes: as asked for, as the memories allow, or as the router decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ttt_docs.errors import UsageError
from ttt_docs.generation.results import Route
from ttt_docs.lookup import router
from ttt_docs.memory.memory import Memory

AskRoute = Literal["auto", "memory", "lookup"]


def chosen_route(memories: Sequence[Memory], question: str, route: AskRoute) -> tuple[Route, str]:
    """The route of a question, and why.

    Raises UsageError for an empty question, and for memories that were asked for what they do not hold.
    """
    if not question.strip():
        raise UsageError("the question is empty")
    if route == "memory":
        if len(memories) > 1:
            raise UsageError('several memories cannot answer as one: ask them one by one, or with route="lookup"')
        if memories[0].unread:
            raise UsageError(
                'this memory holds only the text, nothing of it was read: ask with route="lookup", '
                "or ingest the document with learn=True"
            )
        return "memory", "route=memory was asked for"
    if route == "lookup":
        return "lookup", "route=lookup was asked for"
    if len(memories) > 1:
        return "lookup", "several memories are looked up in"
    if memories[0].text is None:
        return "memory", "the memory was saved without its text, so nothing can be looked up"
    if memories[0].unread:
        return "lookup", "the memory holds only the text, nothing of it was read"
    decision = router.route(question)
    return decision.route, decision.reason
