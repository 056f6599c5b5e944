"""Downloads from a local server: complete or absent, resumed, and with a timeout."""

import hashlib
import http.server
import re
import socket
import threading
import time

import pytest

from sam_runner.data.datasets import cifar
from sam_runner.data.datasets.download import download_file
from sam_runner.utils.errors import InputError
from tests.helpers import invoke

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, and ranges of it if `ranges` is true; records the requested ranges in `requested`."""

    content, ranges, requested, delay = CONTENT, True, [], 0.0

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).requested.append(wanted)
        time.sleep(self.delay)
        start = int(wanted[6:].rstrip("-")) if wanted and self.ranges else 0
        if start >= len(self.content) > 0 and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    kind = type("TestServer", (Server,), {"requested": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        kind.url = f"http://127.0.0.1:{running.server_port}/file"
        yield kind
        running.shutdown()


def test_a_file_comes_whole(server, tmp_path):
    download_file(server.url, tmp_path / "deep" / "file", SHA256)
    assert (tmp_path / "deep" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


@pytest.mark.parametrize("ranges", [True, False])
def test_half_a_file_is_resumed(server, ranges, tmp_path):
    server.ranges = ranges
    (tmp_path / "file.part").write_bytes(CONTENT[:300_000])
    download_file(server.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requested == ["bytes=300000-"]


def test_a_whole_part_is_taken_without_another_byte(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    download_file(server.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match="not the published file"):
        download_file(server.url, tmp_path / "file", SHA256)
    assert not list(tmp_path.iterdir())


def test_a_missing_page_is_reported(server, tmp_path):
    server.do_GET = lambda self: self.send_error(404)
    with pytest.raises(InputError, match=r"could not be downloaded.*404"):
        download_file(server.url, tmp_path / "file", SHA256)
    assert not list(tmp_path.iterdir())


def test_a_server_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        started = time.perf_counter()
        with pytest.raises(InputError, match="timed out"):
            download_file(url, tmp_path / "file", SHA256, timeout=0.5)
        assert 0.4 < time.perf_counter() - started < 5


def test_two_threads_download_a_file_once(server, tmp_path):
    server.delay = 0.3
    both = [threading.Thread(target=download_file, args=(server.url, tmp_path / "file", SHA256)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(20)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requested == [None]


def test_a_folder_that_cannot_be_made_is_reported(server, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="could not be downloaded"):
        download_file(server.url, tmp_path / "taken" / "file", SHA256)


def test_md5_is_known_by_its_length(server, tmp_path):
    download_file(server.url, tmp_path / "file", hashlib.md5(CONTENT).hexdigest())
    assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(InputError, match="its md5 differs"):
        download_file(server.url, tmp_path / "other", hashlib.md5(b"x").hexdigest())


def test_a_server_that_falls_silent_is_asked_again_for_the_rest(server, tmp_path, monkeypatch):
    """Each answer stops after 2 MiB; no byte is sent twice."""
    content, pause = bytes(range(256)) * 20_000, threading.Event()
    server.content = content

    def silent(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        self.requested.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + (2 << 20)])
        self.wfile.flush()
        if start + (2 << 20) < len(content):
            pause.wait(5)

    server.do_GET = silent
    download_file(server.url, tmp_path / "file", hashlib.sha256(content).hexdigest(), timeout=0.5)
    pause.set()
    assert (tmp_path / "file").read_bytes() == content
    assert server.requested == [0, 2 << 20, 4 << 20]


def test_the_message_has_all_that_is_needed_to_do_it_by_hand(server, tmp_path):
    server.do_GET = lambda self: self.send_error(503)
    with pytest.raises(InputError) as caught:
        download_file(server.url, tmp_path / "deep" / "name.mat", SHA256)
    assert all(
        part in str(caught.value) for part in (server.url, "name.mat", SHA256, str(tmp_path / "deep"), "data.url=")
    )


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "svhn"])
def test_without_a_network_a_set_is_refused_within_five_seconds(name, tmp_path, monkeypatch, capsys):
    """A proxy on a closed port stands for a missing network."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "")
    started = time.perf_counter()
    done = invoke(monkeypatch, capsys, tmp_path, f"data={name}", "data.root=root", "data.download=true")
    seconds = time.perf_counter() - started
    assert done.returncode == 2, done.stderr
    assert "could not be downloaded" in done.stderr
    assert re.search(rf"put \S+ \((md5|sha256) [0-9a-f]+\) into {tmp_path}/root", done.stderr)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 20
    assert seconds < 5


def test_sam_train_downloads_checks_and_reads(server, tmp_path, monkeypatch, capsys):
    from tests.data.datasets.test_cifar import random_files, write_dataset

    write_dataset(tmp_path / "published", "cifar10", "binary", random_files("cifar10"), archive=True)
    archive = (tmp_path / "published" / "cifar-10-binary.tar.gz").read_bytes()
    server.content = archive
    version = cifar.CIFAR10[0]
    local_version = cifar._Version(
        version.folder, version.archive, hashlib.sha256(archive).hexdigest(), version.train, version.test
    )
    monkeypatch.setattr(cifar, "CIFAR10", (local_version, cifar.CIFAR10[1]))
    words = ["data=cifar10", "data.root=root", "batch_size=50", "epochs=1", "model.width=4", "device=cpu"]
    done = invoke(
        monkeypatch,
        capsys,
        tmp_path,
        *words,
        "data.download=true",
        f"data.url={server.url.rpartition('/')[0]}",
        "run_dir=run",
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["cifar-10-binary.tar.gz"]
