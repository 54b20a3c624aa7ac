"""Fetch a picture from a URL that nobody vouches for.

The danger is a URL that makes *this* machine talk to something that only it can reach: a cloud's
metadata service, a database on the local network. So the name is resolved once, every address that
it resolves to must be public, and the connection goes to the very address that was checked, for
each redirect anew. There is no second resolution that could give another answer.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

import httpx

from vlmguard.errors import ConfigError, InputError
from vlmguard.images.addresses import is_allowed
from vlmguard.images.decode import DEFAULT_LIMITS, ImageLimits
from vlmguard.images.formats import name_of
from vlmguard.images.load import load_image
from vlmguard.types import Image

Address: TypeAlias = IPv4Address | IPv6Address
Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host name, port) → its addresses, the preferred one first; `OSError` when there are none."""

_MAX_URL = 8192  # characters
_MAX_TRIED = 4  # addresses of one name
_CONNECT_S = 3.0  # for one address, so that the next one gets its turn
_HEADERS = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # nothing to inflate, so nothing can blow up
    "User-Agent": "vlmguard-r1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What a remote picture may cost, and where it may come from.

    Attributes:
        image: caps on bytes, pixels and frames; bytes are counted while they arrive.
        seconds: for everything from name resolution to the last byte, redirects included.
        redirects: how many to follow; each is checked like the first URL.
        ports: allowed ports.
        domains: allowed host names: ``example.com`` is that host, ``*.example.com`` every host
            below it. ``None`` allows all.
        allow_private: also fetch from loopback and private addresses; for servers whose pictures
            are in their own network. Metadata services stay closed.
    """

    image: ImageLimits = DEFAULT_LIMITS
    seconds: float = 10.0
    redirects: int = 3
    ports: frozenset[int] = frozenset({80, 443})
    domains: tuple[str, ...] | None = None
    allow_private: bool = False


DEFAULT_FETCH_LIMITS = FetchLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A URL that passed the checks that need no network.

    Attributes:
        url: parsed.
        host: lower case ASCII, without a final dot; an address without brackets.
        port: the URL's, or the scheme's.
        shown: for messages, without the query: it may carry a signature.
    """

    url: httpx.URL
    host: str
    port: int
    shown: str


async def _resolve(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Fetcher:
    """Fetches pictures over http and https; may be used by many tasks at once.

    No cookies, no credentials, and no proxy from the environment: a proxy would resolve the name
    again, and the check would be worth nothing.

    Args:
        limits: what a picture may cost and where it may come from.
        resolver: in place of the system's name resolution.

    Raises:
        ConfigError: an allowed domain is not a host name.
    """

    def __init__(
        self, limits: FetchLimits = DEFAULT_FETCH_LIMITS, *, resolver: Resolver = _resolve
    ) -> None:
        self._limits = limits
        self._resolver = resolver
        self._domains = (
            None if limits.domains is None else [_check_domain(name) for name in limits.domains]
        )

    async def fetch_image(self, url: str) -> Image:
        """Fetch, load and check one picture.

        Raises:
            InputError: the URL or where it leads is not allowed, the server does not deliver within
                the limits, or what it delivers is not a picture. Of what the network said, the
                message shows a status and a redirect's target, never addresses or content.
        """
        target = self._check_url(url)
        try:
            async with asyncio.timeout(self._limits.seconds):
                data = await self._follow(target)
        except TimeoutError:
            raise InputError(
                f"{target.shown}: took longer than {self._limits.seconds:g} s to fetch"
            ) from None
        if data and name_of(data) is None:
            # The message for local files quotes the first bytes: not for what a server sent.
            raise InputError(f"{target.shown}: what the server sends is not a picture")
        fetched = Image(data=data, media_type="application/octet-stream", source=target.shown)
        return await asyncio.to_thread(load_image, fetched, limits=self._limits.image)

    async def _follow(self, target: _Target) -> bytes:
        for _ in range(self._limits.redirects + 1):
            got = await self._get(target)
            if isinstance(got, bytes):
                return got
            target = self._check_url(str(got), came_from=target)
        raise InputError(f"{target.shown}: more than {self._limits.redirects} redirects")

    async def _get(self, target: _Target) -> bytes | httpx.URL:
        """The body, or where the server redirects to."""
        addresses = await self._vetted(target)
        for address in addresses[:_MAX_TRIED]:
            try:
                return await self._get_from(address, target)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
            except httpx.HTTPError as error:
                raise InputError(f"{target.shown}: {_explain(error)}") from error
        raise InputError(f"{target.shown}: {_explain(failure)}") from failure

    async def _get_from(self, address: Address, target: _Target) -> bytes | httpx.URL:
        """One request to an address that was checked; TLS still asks for the name."""
        timeout = httpx.Timeout(self._limits.seconds, connect=_CONNECT_S)
        # A client for each request: no cookie and no open connection is carried to the next host.
        async with (
            httpx.AsyncClient(trust_env=False, verify=self._tls, timeout=timeout) as client,
            client.stream(
                "GET",
                target.url.copy_with(host=str(address), fragment=None),
                headers=_HEADERS | {"Host": target.url.netloc.decode("ascii")},
                extensions={"sni_hostname": target.host},
            ) as response,
        ):
            if response.has_redirect_location:
                return target.url.join(response.headers["Location"])  # httpx has parsed it once
            if response.status_code != httpx.codes.OK:
                raise InputError(f"{target.shown}: the server answers HTTP {response.status_code}")
            return await self._read(response, target)

    async def _read(self, response: httpx.Response, target: _Target) -> bytes:
        limit = self._limits.image.max_bytes
        too_large = InputError(f"{target.shown}: is over the limit of {limit:,} bytes")
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise InputError(f"{target.shown}: arrives compressed, though that was not asked for")
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
            raise too_large
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Loading the certificates takes 20 ms, so once; SSL_CERT_FILE and SSL_CERT_DIR hold."""
        return httpx.create_ssl_context()

    async def _vetted(self, target: _Target) -> list[Address]:
        """The addresses of a host, none of them forbidden.

        One forbidden address spoils the name: who lists a public and a private one side by side
        has made a mistake or tries something, and to pick the good one would hide it.
        """
        try:
            literal = [ip_address(target.host)]
        except ValueError:
            literal = []
        try:
            names = [] if literal else await self._resolver(target.host, target.port)
            addresses = literal or [ip_address(name) for name in dict.fromkeys(names)]
        except (OSError, ValueError):  # ValueError: no host name, e.g. an empty label
            addresses = []
        if not addresses:
            raise InputError(f"{target.shown}: there is no host {target.host!r}")
        allow_private = self._limits.allow_private
        if not all(is_allowed(address, allow_private=allow_private) for address in addresses):
            raise InputError(f"{target.shown}: leads to an address that is not public; not fetched")
        return addresses

    def _check_url(self, text: str, *, came_from: _Target | None = None) -> _Target:
        """Everything that can be checked without a network."""
        target = _parse(text, f"{came_from.shown} redirects to " if came_from else "")
        if target.port not in self._limits.ports:
            allowed = ", ".join(str(port) for port in sorted(self._limits.ports))
            raise InputError(f"{target.shown}: port {target.port} is not allowed ({allowed} are)")
        if self._domains is not None and not any(
            target.host == name or (name.startswith("*.") and target.host.endswith(name[1:]))
            for name in self._domains
        ):
            raise InputError(f"{target.shown}: {target.host} is not among the allowed domains")
        return target


def _parse(text: str, prefix: str) -> _Target:
    stripped = text.strip()
    if not stripped:
        raise InputError(f"{prefix}an empty URL")
    if len(stripped) > _MAX_URL:
        raise InputError(f"{prefix}{stripped[:60]!r}…: a URL of more than {_MAX_URL:,} characters")
    head, _, query = stripped.partition("?")
    # Credentials are cut out of what is shown before anything else can fail.
    shown = prefix + re.sub(r"//[^/]*@", "//***@", head)[:200] + ("?…" if query else "")
    if re.search(r"[\x00-\x20\x7f-\xa0\\]", stripped):
        raise InputError(f"{shown!r}: a URL has no spaces, control characters or backslashes")
    try:
        url = httpx.URL(stripped)
        host = url.raw_host.decode("ascii").removesuffix(".")
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"{shown}: is not a valid URL") from error
    if url.scheme not in {"http", "https"}:
        raise InputError(f"{shown}: only http and https URLs are fetched")
    if "@" in re.split(r"[/?#]", stripped.partition("//")[2], maxsplit=1)[0]:
        raise InputError(f"{shown}: has credentials in it; such URLs are not fetched")
    if not host:
        raise InputError(f"{shown}: names no host")
    if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host):  # e.g. percent signs, IPv6 zones
        raise InputError(f"{shown}: {host!r} is not a host name or address")
    if _is_number(host.rpartition(".")[2]) and not (":" in host or _is_plain_ipv4(host)):
        raise InputError(f"{shown}: write an IPv4 address as four plain decimal numbers")
    port = url.port if url.port is not None else {"http": 80, "https": 443}[url.scheme]
    return _Target(url=url, host=host, port=port, shown=shown)


def _is_number(label: str) -> bool:
    """Whether resolvers may read a host that ends so as an address: 2130706433, 0x7f.1, 0177.1."""
    return label.isdigit() or bool(re.fullmatch(r"0[xX][0-9a-fA-F]*", label))


def _is_plain_ipv4(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True


def _check_domain(name: str) -> str:
    """An entry of the allow list in the form in which hosts are compared."""
    wildcard, bare = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    host = ""
    if not re.search(r"[\s/?#@:*\\]", bare):
        try:
            host = httpx.URL(f"http://{bare}/").raw_host.decode("ascii").removesuffix(".")
        except (httpx.InvalidURL, ValueError):
            host = ""
    if not host:
        raise ConfigError(
            f"allowed domain {name!r} is not a host name; write example.com or *.example.com"
        )
    return wildcard + host


def _explain(error: httpx.HTTPError) -> str:
    """What went wrong, without what the network said about it."""
    if isinstance(error, httpx.TimeoutException):
        return "the server does not answer in time"
    if isinstance(error, httpx.ConnectError):
        if "CERTIFICATE" in str(error):
            return "the server's TLS certificate is not valid for this host"
        return "the server cannot be reached"
    return "the connection broke, or the answer is not HTTP"
