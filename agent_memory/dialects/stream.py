"""A reply as one of the two APIs streams it: plain events, from a thread or an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Protocol

from agent_memory.dialects.plain import Data
from agent_memory.generation import Generation
from agent_memory.types import Delta, Reply


class Writer(Protocol):
    """Writes one reply as events, in order, and as the object that they add up to."""

    def begin(self) -> list[dict[str, Any]]:
        """Before the first piece."""

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        """One more piece."""

    def end(self, reply: Reply) -> list[dict[str, Any]]:
        """After the last piece."""

    def whole(self) -> dict[str, Any]:
        """The object; after ``end``."""


class TextPieces:
    """The text of a reply, piece by piece."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __iter__(self) -> Iterator[str]:
        return self._generation.text()

    async def __aiter__(self) -> AsyncIterator[str]:
        async for delta in self._generation:
            if delta.text:
                yield delta.text


class EventStream:
    """The events of one reply: iterable, async-iterable, awaitable for the whole object, and a context manager.

    It may be iterated again: the same events come. Leaving a ``with`` block or an iterator early cancels the request.
    """

    def __init__(self, generation: Generation, writer: Callable[[], Writer]) -> None:
        self._generation, self._writer = generation, writer

    def __iter__(self) -> Iterator[Data]:
        writer = self._writer()
        with self._generation:  # left early, be it before its first piece, it is cancelled
            yield from map(Data, writer.begin())
            for delta in self._generation:
                yield from map(Data, writer.delta(delta))
            yield from map(Data, writer.end(self._generation.result()))

    async def __aiter__(self) -> AsyncIterator[Data]:
        writer = self._writer()
        with self._generation:
            for event in writer.begin():
                yield Data(event)
            async for delta in self._generation:
                for event in writer.delta(delta):
                    yield Data(event)
            for event in writer.end(await self._generation):
                yield Data(event)

    def __await__(self) -> Generator[Any, None, Data]:
        yield from self._generation.__await__()
        return self.whole()

    @property
    def text_stream(self) -> TextPieces:
        """The answer's text alone, as it comes: for ``for`` and ``async for``."""
        return TextPieces(self._generation)

    def whole(self) -> Data:
        """Return the object that the events add up to, as without streaming. Waits for the reply."""
        writer = self._writer()
        with self._generation:
            reply = self._generation.result()
        writer.begin()
        for delta in self._generation:
            writer.delta(delta)
        writer.end(reply)
        return Data(writer.whole())

    get_final_message = get_final_completion = whole  #: the names that the SDKs' streams have for it

    def close(self) -> None:
        """Cancel the request if it still runs."""
        self._generation.cancel()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
