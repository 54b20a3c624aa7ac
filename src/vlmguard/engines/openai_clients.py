"""As many HTTP clients as there are requests for, all to one server.

The connection pool of httpx goes through all of its connections for each request that begins or
ends, so one pool with 64 requests in flight costs three times the processor time of eight with
eight each (``benchmarks/synth_throughput.py rate``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass

import httpx

_REQUESTS_EACH = 8
_MOST_CLIENTS = 16


@dataclass(slots=True)
class _Counted:
    """A client, and its requests in flight."""

    client: httpx.AsyncClient
    requests: int = 0

    def release(self) -> None:
        self.requests -= 1


class Clients:
    """Sends each request through the first client that has few others in flight.

    A further client is made when all have their share, up to sixteen; so whoever asks one thing at
    a time has one client with one connection, kept open. Belongs to one event loop.

    Args:
        make: a client of the server.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient]) -> None:
        self._make = make
        self._all: list[_Counted] = []

    def __len__(self) -> int:
        return len(self._all)

    async def post(
        self, url: httpx.URL, *, content: bytes, auth: httpx.Auth | None, stream: bool
    ) -> httpx.Response:
        """Post JSON.

        Args:
            url: where to.
            content: the JSON.
            auth: adds the key.
            stream: leave the body of a successful response to the caller, who closes it.

        Raises:
            httpx.HTTPError: no response, or a broken one.
        """
        counted = self._take()
        with ExitStack() as held:
            held.callback(counted.release)
            request = counted.client.build_request(
                "POST", url, content=content, headers={"content-type": "application/json"}
            )
            response = await counted.client.send(request, stream=True, auth=auth)
            if stream and response.is_success:
                assert isinstance(response.stream, httpx.AsyncByteStream)
                response.stream = _Closing(response.stream, held.pop_all())
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        clients, self._all = self._all, []
        await asyncio.gather(*(counted.client.aclose() for counted in clients))

    def _take(self) -> _Counted:
        free = (counted for counted in self._all if counted.requests < _REQUESTS_EACH)
        found = next(free, None)
        if found is None and len(self._all) < _MOST_CLIENTS:
            found = _Counted(self._make())
            self._all.append(found)
        if found is None:
            found = min(self._all, key=lambda counted: counted.requests)
        found.requests += 1
        return found


class _Closing(httpx.AsyncByteStream):
    """A body that lets go of something when it is closed."""

    def __init__(self, body: httpx.AsyncByteStream, held: ExitStack) -> None:
        self._body = body
        self._held = held

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._body:
            yield part

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        finally:
            self._held.close()
