"""Fetching pictures from URLs that nobody vouches for, driven on real loopback servers."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.drawing import encode, shapes
from vlmguard.errors import ConfigError, InputError
from vlmguard.images import ImageLimits
from vlmguard.images.fetch import Fetcher, FetchLimits

PNG = encode(shapes(size=(64, 48)))

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole HTTP answer, closed at its end."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@dataclass
class Site:
    """A loopback server that notes the requests it gets.

    Attributes:
        pages: path → a whole answer, or a coroutine that writes one.
        requests: request heads, in order.
    """

    pages: dict[str, bytes | Answer] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            page = self.pages.get(head.split(" ")[1], response(b"", status="404 Not Found"))
            if isinstance(page, bytes):
                writer.write(page)
            else:
                await page(head, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def url(self, path: str, host: str = "pictures.test", scheme: str = "http") -> str:
        """Where a page is."""
        return f"{scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def serving(
    *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    """A site on a free port."""
    site = Site()
    server = await asyncio.start_server(site.handle, host, 0, ssl=tls)
    async with server:
        site.port = server.sockets[0].getsockname()[1]
        yield site
        server.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A site with one picture at /a.png."""
    async with serving() as running:
        running.pages["/a.png"] = response(PNG, "Content-Type: text/plain")
        yield running


class Names:
    """A resolver for tests: each look-up of a name takes its next answer, the last one stays."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Answer one look-up."""
        self.asked.append(host)
        if host not in self.answers:
            raise OSError("no such host")
        left = self.answers[host]
        return left.pop(0) if len(left) > 1 else left[0]


LOOPBACK = Names(pictures_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])


def fetcher(site: Site, resolver: Names = LOOPBACK, **limits: Any) -> Fetcher:
    """A fetcher that may reach the site."""
    chosen = replace(FetchLimits(allow_private=True, ports=frozenset({site.port})), **limits)
    return Fetcher(chosen, resolver=resolver)


async def test_a_picture_arrives_byte_for_byte(site: Site) -> None:
    """The bytes are the server's, the type comes from the bytes, the source is the URL."""
    url = site.url("/a.png")
    image = await fetcher(site).fetch_image(f"  {url}\n")
    assert image.data == PNG
    assert image.media_type == "image/png"
    assert image.source == url


async def test_what_a_server_gets_to_see(site: Site) -> None:
    """The name and the query arrive; nothing that identifies anybody does."""
    site.pages["/a.png?x=1"] = response(PNG)
    await fetcher(site).fetch_image(site.url("/a.png?x=1#fragment"))
    (head,) = site.requests
    lines = head.lower().split("\r\n")
    assert lines[0] == "get /a.png?x=1 http/1.1"
    assert f"host: pictures.test:{site.port}" in lines
    assert "accept-encoding: identity" in lines
    assert not {line.split(":")[0] for line in lines} & {"cookie", "authorization", "referer"}


async def test_the_environments_proxy_and_netrc_are_left_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A proxy would resolve the name again; credentials are not for strangers."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    await fetcher(site).fetch_image(site.url("/a.png"))
    assert "authorization" not in site.requests[0].lower()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "empty URL"),
        ("   ", "empty URL"),
        ("a.png", "only http and https"),
        ("//host/a.png", "only http and https"),
        ("ftp://host/a.png", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("http:///a.png", "names no host"),
        ("http://", "names no host"),
        ("http://a b/", "no spaces"),
        ("http://a/\tb", "no spaces"),
        ("http://a\r\nHost: b/", "no spaces"),
        ("http://a\x00b/", "no spaces"),
        ("http://public.test\\@127.0.0.1/", "backslashes"),
        ("http://me:secret@public.test/", "credentials"),
        ("http://@public.test/", "credentials"),
        ("http://127.0.0.1:80@public.test/", "credentials"),
        ("http://public.test:22/", "port 22"),
        ("http://public.test:0/", "port 0"),
        ("http://public.test:99999/", "99999"),
        ("http://public.test:x/", "not a valid URL"),
        ("http://[::1/", "not a valid URL"),
        ("http://" + "a" * 9000, "8,192"),
        ("http://2130706433/", "four plain decimal"),
        ("http://0x7f000001/", "four plain decimal"),
        ("http://0x7f.1/", "four plain decimal"),
        ("http://0177.0.0.01/", "not a valid URL"),
        ("http://0177.1/", "four plain decimal"),
        ("http://127.1/", "four plain decimal"),
        ("http://0/", "four plain decimal"),
        ("http://127.0.0.1.1/", "four plain decimal"),
        ("http://%31%32%37.0.0.1/", "not a host name"),
        ("http://[fe80::1%25eth0]/", "not a host name"),
        ("http://①②⑦.⓪.⓪.①/", "not a valid URL"),
        ("http://１２７.0.0.1/", "not a valid URL"),
        ("http://127.0.0.1/", "not public"),
        ("http://127.0.0.1./", "not public"),
        ("http://169.254.169.254/latest/meta-data/", "not public"),
        ("http://[::1]/", "not public"),
        ("http://[::ffff:127.0.0.1]/", "not public"),
        ("http://[::ffff:7f00:1]/", "not public"),
        ("http://[64:ff9b::7f00:1]/", "not public"),
        ("http://[2002:7f00:1::]/", "not public"),
        ("http://nowhere.test/", "no host 'nowhere.test'"),
        ("http://a..b/", "no host 'a..b'"),
    ],
)
async def test_urls_that_are_refused(url: str, why: str) -> None:
    """Each with its reason, without a connection, and without the credentials in it."""
    with pytest.raises(InputError, match=why) as caught:
        await Fetcher(resolver=Names(public_test=[["8.8.8.8"]])).fetch_image(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost/", "HTTP://LocalHost./a.png"])
async def test_localhost_is_refused(url: str) -> None:
    """The system's own resolution is checked like any other."""
    with pytest.raises(InputError, match="not public"):
        await Fetcher().fetch_image(url)


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.5"], ["8.8.8.8", "10.0.0.5"], ["fd00::5", "2606:4700::1111"], ["::ffff:10.0.0.5"]],
)
async def test_one_private_address_spoils_a_name(addresses: list[str]) -> None:
    """A name with a private address is refused as a whole, and the address is not told."""
    with pytest.raises(InputError, match="not public") as caught:
        await Fetcher(resolver=Names(mixed_test=[addresses])).fetch_image("http://mixed.test/")
    assert "10.0.0.5" not in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"https?://[\x00-\xff]{0,40}", fullmatch=True))
async def test_any_text_is_refused_in_words(text: str) -> None:
    """Whatever stands in place of a URL ends in an InputError, never in another exception."""
    with pytest.raises(InputError):
        await Fetcher(resolver=Names()).fetch_image(text)


@given(st.binary(max_size=40).filter(lambda raw: not set(raw) & set(b"\r\n\0")))
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_redirect_is_refused_in_words(site: Site, location: bytes) -> None:
    """Whatever a server writes into its Location header, too."""
    head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: "
    site.pages["/go"] = head + location + b"\r\n\r\n"
    with pytest.raises(InputError):
        await fetcher(site, redirects=1).fetch_image(site.url("/go"))


async def test_a_query_is_not_shown() -> None:
    """Signed URLs stay secret in messages."""
    with pytest.raises(InputError) as caught:
        await Fetcher(resolver=Names()).fetch_image("https://a.test/p.png?signature=secret")
    assert "https://a.test/p.png?…" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_second_answer_of_the_resolver_does_not_matter(site: Site) -> None:
    """DNS rebinding: the name is asked once, and the connection goes to the checked address."""
    names = Names(rebind_test=[["127.0.0.1"], ["169.254.169.254"]])
    image = await fetcher(site, names).fetch_image(site.url("/a.png", "rebind.test"))
    assert image.data == PNG
    assert names.asked == ["rebind.test"]


async def test_a_redirect_resolves_and_checks_anew(site: Site) -> None:
    """A name that turns bad between two hops is caught at the second."""
    site.pages["/go"] = response(b"", "Location: /a.png", status="302 Found")
    names = Names(rebind_test=[["127.0.0.1"], ["169.254.169.254"]])
    with pytest.raises(InputError, match=r"redirects to .*not public"):
        await fetcher(site, names).fetch_image(site.url("/go", "rebind.test"))
    assert len(site.requests) == 1


async def test_the_next_address_gets_its_turn(site: Site) -> None:
    """When the first address refuses the connection, the second is tried."""
    names = Names(two_test=[["127.0.0.2", "127.0.0.1"]])
    image = await fetcher(site, names).fetch_image(site.url("/a.png", "two.test"))
    assert image.data == PNG


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 T", "308 P"])
async def test_redirects_are_followed(site: Site, status: str) -> None:
    """To another path or another host; cookies stay behind."""
    there = site.url("/a.png", "other.test")
    site.pages["/go"] = response(b"", f"Location: {there}", "Set-Cookie: a=b", status=status)
    image = await fetcher(site).fetch_image(site.url("/go"))
    assert image.data == PNG
    assert "cookie" not in site.requests[1].lower()


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://169.254.169.254/latest/", "not public"),
        ("http://2130706433/", "four plain decimal"),
        ("file:///etc/passwd", "only http and https"),
        ("http://me:secret@pictures.test/", "credentials"),
        ("http://[::1/", "not HTTP"),
        ("//nowhere.test/", "no host"),
    ],
)
async def test_redirects_are_checked_like_urls(site: Site, location: str, why: str) -> None:
    """Whatever the first URL may not be, a redirect may not be either."""
    site.pages["/go"] = response(b"", f"Location: {location}", status="302 Found")
    with pytest.raises(InputError, match=why) as caught:
        await fetcher(site, ports=frozenset({80, site.port})).fetch_image(site.url("/go"))
    assert "secret" not in str(caught.value)


async def test_at_most_three_redirects(site: Site) -> None:
    """Three are followed, a fourth is not, and a loop ends."""
    for step in range(3):
        site.pages[f"/{step}"] = response(b"", f"Location: /{step + 1}", status="302 Found")
    site.pages["/3"] = response(PNG)
    assert (await fetcher(site).fetch_image(site.url("/0"))).data == PNG
    site.pages["/3"] = response(b"", "Location: /0", status="302 Found")
    with pytest.raises(InputError, match="more than 3 redirects"):
        await fetcher(site).fetch_image(site.url("/0"))


async def test_a_declared_length_over_the_limit_ends_it_at_once(site: Site) -> None:
    """Nothing of the body is waited for."""

    async def page(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        await asyncio.sleep(5)

    site.pages["/big"] = page
    small = ImageLimits(max_bytes=100_000)
    with pytest.raises(InputError, match="over the limit of 100,000 bytes"):
        await asyncio.wait_for(fetcher(site, image=small).fetch_image(site.url("/big")), 2)


async def test_an_endless_body_is_cut_off(site: Site) -> None:
    """Bytes are counted while they arrive; a server need not tell the truth."""
    sent = 0

    async def page(_head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            sent += 0x10000
            await writer.drain()

    site.pages["/endless"] = page
    small = ImageLimits(max_bytes=100_000)
    with pytest.raises(InputError, match="over the limit"):
        await fetcher(site, image=small).fetch_image(site.url("/endless"))
    assert sent < 50_000_000  # what fits into the sockets' buffers, not more


async def test_a_slow_server_is_given_up(site: Site) -> None:
    """The time is for the whole, so a trickle that never stalls does not help."""

    async def page(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    site.pages["/slow"] = page
    with pytest.raises(InputError, match=r"longer than 0.3 s"):
        await fetcher(site, seconds=0.3).fetch_image(site.url("/slow"))


async def test_a_slow_resolver_is_given_up() -> None:
    """Name resolution counts too."""

    async def never(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(InputError, match=r"longer than 0.1 s"):
        await Fetcher(FetchLimits(seconds=0.1), resolver=never).fetch_image("http://a.test/")


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (response(b"secret", status="404 Not Found"), "HTTP 404"),
        (response(b"secret", status="500 Oops"), "HTTP 500"),
        (response(b"", status="302 Found"), "HTTP 302"),
        (response(PNG, "Content-Encoding: gzip"), "compressed"),
        (response(b"<html>secret</html>"), "web page"),
        (response(b"secret words that are no picture"), "not a picture"),
        (response(b""), "empty"),
        (response(PNG[:200]), "PNG"),
        (b"secret, this is not HTTP\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nsecret", "connection broke"),
        (b"", "connection broke"),
    ],
)
async def test_answers_that_are_no_picture(site: Site, page: bytes, why: str) -> None:
    """Each with its reason; what the server sent is not passed on."""
    site.pages["/x"] = page
    with pytest.raises(InputError, match=why) as caught:
        await fetcher(site).fetch_image(site.url("/x"))
    assert "secret" not in str(caught.value)
    assert site.url("/x") in str(caught.value)


async def test_a_closed_port_is_named() -> None:
    """No server there is a plain message, without the system's own words."""
    async with serving() as gone:
        pass
    with pytest.raises(InputError, match="cannot be reached"):
        await fetcher(gone).fetch_image(gone.url("/a.png"))


@pytest.mark.parametrize(
    ("domains", "host", "passes"),
    [
        (("pictures.test",), "pictures.test", True),
        (("Pictures.Test.",), "PICTURES.TEST.", True),
        (("*.test",), "pictures.test", True),
        (("*.pictures.test",), "pictures.test", False),
        (("other.test",), "pictures.test", False),
        (("ictures.test",), "pictures.test", False),
        ((), "pictures.test", False),
    ],
)
async def test_allowed_domains(
    site: Site, domains: tuple[str, ...], host: str, passes: bool
) -> None:
    """An exact name, or every name below one."""
    getting = fetcher(site, domains=domains).fetch_image(site.url("/a.png", host))
    if passes:
        assert (await getting).data == PNG
    else:
        with pytest.raises(InputError, match="not among the allowed domains"):
            await getting


async def test_a_redirect_may_not_leave_the_allowed_domains(site: Site) -> None:
    """The list holds for each hop."""
    there = site.url("/a.png", "other.test")
    site.pages["/go"] = response(b"", f"Location: {there}", status="302 Found")
    with pytest.raises(InputError, match=r"other\.test is not among"):
        await fetcher(site, domains=("pictures.test",)).fetch_image(site.url("/go"))


@pytest.mark.parametrize("name", ["", "*", "*.", "https://a.test", "a.test/x", "a b", "a.*.test"])
def test_domains_that_are_no_names(name: str) -> None:
    """A list that could never match is an error when it is given, not a silent refusal."""
    with pytest.raises(ConfigError, match="not a host name"):
        Fetcher(FetchLimits(domains=(name,)))


async def test_ipv6(site: Site) -> None:
    """Literal addresses in brackets are reached, with the right Host header."""
    try:
        async with serving(host="::1") as six:
            six.pages["/a.png"] = response(PNG)
            image = await fetcher(six).fetch_image(six.url("/a.png", "[::1]"))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert image.data == PNG
    assert f"Host: [::1]:{six.port}" in six.requests[0]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for pictures.test, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += " -subj /CN=pictures.test -addext subjectAltName=DNS:pictures.test"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


async def test_tls_is_checked_against_the_name(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to an address, and the certificate must be the name's all the same."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with serving(tls=context) as safe:
        safe.pages["/a.png"] = response(PNG)
        image = await fetcher(safe).fetch_image(safe.url("/a.png", scheme="https"))
        assert image.data == PNG
        with pytest.raises(InputError, match="certificate is not valid"):
            await fetcher(safe).fetch_image(safe.url("/a.png", "other.test", "https"))
    assert asked == ["pictures.test", "other.test"]


async def test_many_at_once(site: Site) -> None:
    """One fetcher serves many tasks."""
    shared = fetcher(site)
    images = await asyncio.gather(*(shared.fetch_image(site.url("/a.png")) for _ in range(20)))
    assert [image.data for image in images] == [PNG] * 20


async def test_cancelling_closes_the_connection(site: Site) -> None:
    """A caller that gives up leaves nothing open."""
    begun, closed = asyncio.Event(), asyncio.Event()

    async def page(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        begun.set()
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            closed.set()

    site.pages["/slow"] = page
    task = asyncio.create_task(fetcher(site).fetch_image(site.url("/slow")))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 2)
