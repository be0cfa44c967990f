"""Downloads from a server on this machine that cuts, corrupts, delays, ignores ranges or is not there."""

import hashlib
import http.server
import threading
import time

import numpy as np
import pytest

from ranvier.data import cache, download
from ranvier.data.download import fetch
from ranvier.errors import RanvierError

BODY = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Behaves as the path of the address says, and keeps the ranges that it was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def address(self, how: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{how}"

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        how, asked = self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append(asked)
        n = len(self.server.asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and how != "no-range" else 0
        if how == "gone":
            return self.send_error(404)
        if how == "busy" and n < 3:
            return self.send_error(503)
        body = BODY if how != "other" else BODY[:-1] + b"\0"
        if how == "flipped" and n == 1:
            body = b"\xff" + BODY[1:]
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        part = body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if how == "cut" and n < 4:
            part = part[:100_000]
        if how == "stuck":
            if n == 1:
                self.wfile.write(part[:1000])
                self.wfile.flush()
            time.sleep(0.5)
            return None
        if how == "slow":
            for i in range(0, len(part), 100_000):
                self.wfile.write(part[i : i + 100_000])
                time.sleep(0.05)
            return None
        self.wfile.write(part)
        return None


@pytest.fixture
def server():
    server = Server()
    yield server
    server.end()


def get(server, how, path, **options):
    addresses = [server.address(word) for word in how.split()]
    return fetch(addresses, path, MD5, **{"pause_s": 0.0, "timeout_s": 5.0, "tries": 3} | options)


@pytest.mark.parametrize("how", ["plain", "slow", "busy", "gone plain", "other plain"])
def test_a_file_comes_whole(server, tmp_path, how):
    seen = []
    path = tmp_path / "deep" / "a.bin"
    assert get(server, how, path, progress=lambda done, total: seen.append((done, total))) == ()
    assert path.read_bytes() == BODY and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert seen[-1] == (len(BODY), len(BODY)) and [done for done, _ in seen[-2:]] == sorted(d for d, _ in seen[-2:])


def test_a_cut_is_resumed(server, tmp_path):
    assert get(server, "cut", tmp_path / "a.bin") == ()
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_what_was_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:250_000])
    get(server, "plain", tmp_path / "a.bin")
    assert server.asked == ["bytes=250000-"] and (tmp_path / "a.bin").read_bytes() == BODY


def test_a_server_that_ignores_ranges(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:250_000])
    get(server, "no-range", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY and len(server.asked) == 1


def test_all_bytes_were_there(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    get(server, "plain", tmp_path / "a.bin")
    assert server.asked == [f"bytes={len(BODY)}-"] and (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("before", [b"of another version" * 100, BODY + b"too long"])
def test_a_wrong_beginning_is_fetched_again(server, tmp_path, before):
    (tmp_path / "a.bin.part").write_bytes(before)
    get(server, "plain", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY and server.asked[-1] is None


def test_another_file_is_refused_unless_forced(server, tmp_path):
    with pytest.raises(RanvierError) as error:
        get(server, "other", tmp_path / "a.bin")
    message = str(error.value)
    assert "got a file of a wrong checksum, thrown away (http" in message and "no file" not in message
    assert f"in place of {MD5}" in message and "--force" in message
    assert f"put it at {tmp_path / 'a.bin'}" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []
    (warning,) = get(server, "other", tmp_path / "a.bin", force=True)
    assert warning.startswith("WARNING: a.bin has MD5") and len((tmp_path / "a.bin").read_bytes()) == len(BODY)


def test_a_connection_that_says_nothing(server, tmp_path):
    with pytest.raises(RanvierError, match="TimeoutError after 1000 bytes, 2 times"):
        get(server, "stuck", tmp_path / "a.bin", timeout_s=0.1, tries=2)
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:1000], "what came is kept"


def test_no_network_says_where_the_file_belongs(tmp_path):
    with pytest.raises(RanvierError) as error:
        fetch(["http://127.0.0.1:9/a.bin", "nonsense"], tmp_path / "a.bin", MD5, pause_s=0.0)
    message = str(error.value)
    assert "no connection" in message and f"put it at {tmp_path / 'a.bin'}" in message
    assert "\n" not in message and list(tmp_path.iterdir()) == []


def test_two_at_once(server, tmp_path):
    import fcntl

    with open(tmp_path / "a.bin.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RanvierError, match="another process"):
            get(server, "plain", tmp_path / "a.bin")


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RanvierError, match="set RANVIER_DATA"):
        get(server, "plain", tmp_path / "file" / "a.bin")


def test_the_folder_and_its_checksums(tmp_path, monkeypatch):
    monkeypatch.setenv("RANVIER_DATA", str(tmp_path / "a"))
    assert cache.folder() == tmp_path / "a"
    monkeypatch.delenv("RANVIER_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "ranvier"
    path = tmp_path / "a.bin"
    path.write_bytes(BODY)
    assert cache.known_checksum(path) == MD5
    monkeypatch.setattr(cache, "checksum", lambda path: pytest.fail("computed again"))
    assert cache.known_checksum(path) == MD5
    monkeypatch.undo()
    path.write_bytes(BODY + b"more")
    assert cache.known_checksum(path) != MD5
    (tmp_path / cache.SUMS).write_text("[1")
    assert cache.known_checksum(path) != MD5


def test_blocks_are_smaller_than_the_file():
    assert download.BLOCK < len(BODY)
