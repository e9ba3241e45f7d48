"""Connections that stay open, against servers that write what they are told, byte by byte."""

import asyncio
import datetime
import gzip
import ssl
import zlib
from contextlib import asynccontextmanager

import pytest

from prefloop.pipeline.engines.openai.connections import connection, kept_alive, response
from prefloop.pipeline.engines.openai.connections.kept_alive import Cookies, KeptAlive, is_plain
from prefloop.pipeline.engines.openai.connections.response import TransportError

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def answer(body, *headers):
    lines = b"".join(one + b"\r\n" for one in headers)
    return HEAD + lines + b"content-length: %d\r\n\r\n" % len(body) + body


class Scripted:
    """Writes the answers of its ``script``, one for each request, over all connections; of a list,
    piece by piece. ``close`` ends the connection behind them."""

    def __init__(self, *script, close=False):
        self.script = iter(script)
        self.close = close
        self.connections = 0
        self.heads = []
        self.bodies = []

    async def __call__(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                said = next(self.script)
                for piece in said if isinstance(said, list) else [said]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def asked(scripted, headers=None):
    server = await asyncio.start_server(scripted, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    client = KeptAlive(url, headers or {}, None, Cookies())
    try:
        yield client, f"{url}/completions"
    finally:
        client.close()
        server.close()


def bodies_of(scripted, times=1, **kept):
    """What the client makes of the answers of a server."""

    async def go():
        async with asked(scripted, **kept) as (client, url):
            return [(await client.post(url, b"%d" % time)).body for time in range(times)]

    return asyncio.run(go())


def failure_of(scripted):
    with pytest.raises(TransportError) as caught:
        bodies_of(scripted)
    return caught.value


def chunks(body):
    return b"3;a=b\r\n" + body[:3] + b"\r\n%x\r\n" % len(body[3:]) + body[3:] + b"\r\n0\r\n\r\n"


def test_requests_go_over_one_connection_and_are_sent_whole():
    server = Scripted(answer(b"{}"), answer(b"[1]"), answer(b""))
    assert bodies_of(server, 3, headers={"x-own": "1"}) == [b"{}", b"[1]", b""]
    assert server.connections == 1
    assert server.bodies == [b"0", b"1", b"2"]
    assert server.heads[0].startswith("post /v1/completions http/1.1\r\nhost: 127.0.0.1:")
    assert "x-own: 1\r\n" in server.heads[2]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        answer(b"{}") + answer(b"of nobody"),
    ],
)
def test_a_connection_that_is_not_to_be_trusted_is_not_used_again(said):
    server = Scripted(said, answer(b"2"))
    assert bodies_of(server, 2) == [b"{}", b"2"]
    assert server.connections == 2


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch):
    monkeypatch.setattr(kept_alive, "IDLE_S", 0.0)
    server = Scripted(answer(b"1"), answer(b"2"))
    assert bodies_of(server, 2) == [b"1", b"2"]
    assert server.connections == 2


def test_the_answer_to_a_request_that_was_given_up_goes_to_no_other():
    class Late(Scripted):
        async def __call__(self, reader, writer):
            if self.connections == 0:
                self.connections += 1
                await reader.readuntil(b"\r\n\r\n")
                came.set()
                await over.wait()
                writer.write(answer(b"late"))
                writer.close()
            else:
                await super().__call__(reader, writer)

    came, over = asyncio.Event(), asyncio.Event()
    server = Late(answer(b"its own"))

    async def go():
        async with asked(server) as (client, url):
            first = asyncio.create_task(client.post(url, b"1"))
            await came.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            over.set()
            return (await client.post(url, b"2")).body

    assert asyncio.run(go()) == b"its own"
    assert server.connections == 2


@pytest.mark.parametrize(
    "said",
    [
        [HEAD[:9], HEAD[9:] + b"content-length: 1", b"1\r\n\r", b"\nhello ", b"world"],
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks(b"hello world"),
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + answer(b"hello world"),
        answer(gzip.compress(b"hello ") + gzip.compress(b"world"), b"Content-Encoding: gzip"),
        answer(zlib.compress(b"hello world"), b"content-encoding: deflate"),
        answer(zlib.compress(b"hello world")[2:-4], b"content-encoding: deflate"),
        answer(b"hello world", b"content-encoding: identity"),
    ],
    ids=["in-pieces", "chunked", "hints", "gzip", "deflate", "bare-deflate", "identity"],
)
def test_a_body_comes_whole_however_it_is_sent(said):
    assert bodies_of(Scripted(said)) == [b"hello world"]


def test_a_body_may_end_with_its_connection():
    assert bodies_of(Scripted(HEAD + b"\r\nhello", close=True)) == [b"hello"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (answer(b"hello")[:-1], "disconnected"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "disconnected"),
        (b"", "disconnected"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP"),
        (b"HTTP/1.1 101 x\r\nupgrade: y\r\nconnection: upgrade\r\n\r\n", "no HTTP"),
        (answer(gzip.compress(b"hello")[:-9], b"content-encoding: gzip"), "cut off"),
        (answer(b"hello", b"content-encoding: gzip"), "damaged"),
        (answer(b"hello", b"content-encoding: br"), "not asked for"),
        (HEAD + b"x: " + b"y" * 100_000, "do not end"),
    ],
)
def test_what_is_no_whole_answer_is_none(said, words):
    error = failure_of(Scripted(said, close=True))
    assert words in str(error)
    assert error.was_sent


def test_no_more_is_unpacked_than_is_read(monkeypatch):
    monkeypatch.setattr(response, "LARGEST_BODY", 1 << 20)
    bomb = gzip.compress(b" " * (8 << 20))
    assert "more than 1 MiB" in str(failure_of(Scripted(answer(bomb, b"content-encoding: gzip"))))


def test_chunks_without_end_are_not_read(monkeypatch):
    monkeypatch.setattr(connection, "LARGEST_BODY", 1000)
    said = [
        HEAD + b"transfer-encoding: chunked\r\n\r\n",
        *[b"4000\r\n" + b" " * 16384 + b"\r\n"] * 99,
    ]
    assert "which is not read" in str(failure_of(Scripted(said)))


def test_cookies_come_back():
    server = Scripted(
        answer(b"", b"Set-Cookie: lb=one; Path=/", b"Set-Cookie: x=y; Path=/elsewhere"), answer(b"")
    )
    bodies_of(server, 2, headers={"cookie": "own=1"})
    assert "cookie: own=1\r\n" in server.heads[0]
    assert "cookie: own=1; lb=one\r\n" in server.heads[1]


def test_a_server_that_is_not_there_was_sent_nothing():
    async def go():
        async with asked(Scripted()) as (client, url):
            pass
        await client.post(url, b"")

    with pytest.raises(TransportError, match=r"Cannot connect to 127\.0\.0\.1:") as caught:
        asyncio.run(go())
    assert not caught.value.was_sent


def certificate(folder):
    """One for localhost, signed by itself, and its key: the file with both."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file = folder / "both.pem"
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + signed.public_bytes(pem)
    )
    return file


def test_https_is_spoken_with_a_server_that_is_trusted_and_no_other(tmp_path):
    file = certificate(tmp_path)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(file)

    async def bodies(trusted):
        server = Scripted(answer(b"1"), answer(b"2"))
        listening = await asyncio.start_server(server, "127.0.0.1", 0, ssl=own)
        url = f"https://localhost:{listening.sockets[0].getsockname()[1]}/v1"
        client = KeptAlive(url, {}, trusted, Cookies())
        try:
            return [(await client.post(url, b"")).body for _ in range(2)], server.connections
        finally:
            client.close()
            listening.close()

    assert asyncio.run(bodies(ssl.create_default_context(cafile=file))) == ([b"1", b"2"], 1)
    with pytest.raises(TransportError, match="certificate verify failed") as caught:
        asyncio.run(bodies(ssl.create_default_context()))
    assert not caught.value.was_sent


def test_headers_are_no_place_for_line_breaks():
    with pytest.raises(ValueError, match="x-own"):
        KeptAlive("http://localhost/v1", {"x-own": "a\r\nhost: b"}, None, Cookies())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", True),
        ("HTTPS://api.example.com/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://me:word@localhost/v1", False),
        ("http://bücher.example/v1", False),
        ("http://[fe80::1%25eth0]/v1", False),
        ("unix:///run/server", False),
        ("http:///v1", False),
    ],
)
def test_only_plain_addresses_are_asked_so(url, expected):
    assert is_plain(url) is expected
