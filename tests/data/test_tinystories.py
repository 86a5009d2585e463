"""The download of TinyStories from a server in this process: resumed, verified, and explained where it fails."""

import errno
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from tslm.data.tinystories import TRAIN, VALID, DownloadError, fetch_tinystories

TEXTS = {TRAIN: b"Once upon a time there was a cat.\n<|endoftext|>\n" * 4000, VALID: b"The end.\n<|endoftext|>\n"}
FOLDER = "/datasets/roneneldan/TinyStories/resolve/main/"


class Hub(ThreadingHTTPServer):
    """The part of the hub's protocol that a download needs, on a free local port."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []  # (method, path, Range)
        self.user_agents = set()
        self.cut_at = None  # interrupt the next transfer after this number of bytes
        self.corrupt = False
        self.names_hash = True
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.status = 200
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        hub = self.server
        hub.requests.append((self.command, self.path, self.headers["Range"]))
        hub.user_agents.add(self.headers["User-Agent"])
        assert self.headers["Authorization"] is None, "a token was sent"
        hub.may_answer.wait(20)
        name = self.path.removeprefix(FOLDER)
        text = TEXTS.get(name, b"")
        status = hub.status if name in TEXTS else 404
        start = 0
        if self.headers["Range"] and status == 200:
            start, status = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers["Range"])[1]), 206
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(text).hexdigest() if hub.names_hash else "v1"}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(text) - start if status < 300 else 0))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(text) - 1}/{len(text)}")
        self.end_headers()
        if not with_body or status >= 300:
            return
        if hub.corrupt:
            text = text.replace(b"cat", b"cow")
        if hub.cut_at is not None:
            self.wfile.write(text[start : hub.cut_at])
            self.wfile.flush()
            hub.cut_at, self.close_connection = None, True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(text[start:])


@pytest.fixture(autouse=True)
def _no_request_leaves_this_machine(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # in addition to what is tested below
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(monkeypatch):
    """A server with both files."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


def test_both_files_are_downloaded_once(hub, tmp_path):
    train, valid = fetch_tinystories(tmp_path / "new" / "cache")
    assert train.read_bytes() == TEXTS[TRAIN]
    assert valid.read_bytes() == TEXTS[VALID]
    assert sorted(os.listdir(tmp_path / "new" / "cache")) == [TRAIN, VALID]
    assert {path for _, path, _ in hub.requests} == {FOLDER + TRAIN, FOLDER + VALID}
    before = len(hub.requests)
    assert fetch_tinystories(tmp_path / "new" / "cache") == (train, valid)
    assert len(hub.requests) == before


def test_nothing_but_the_two_files_is_requested(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)  # as it is for a user
    real = constants.ENDPOINT
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):  # requests to the real hub go to the local server
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(real, hub.url))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"), raising=False)
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None, raising=False)
    fetch_tinystories(tmp_path / "cache")
    assert {path for _, path, _ in hub.requests} == {FOLDER + TRAIN, FOLDER + VALID}
    assert not any("torch" in agent or "agent/" in agent for agent in hub.user_agents)
    assert constants.HF_HUB_DISABLE_TELEMETRY is False  # the setting of other code in this process is restored


def test_existing_files_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text)
    train, valid = fetch_tinystories(tmp_path)
    assert train.read_bytes() == TEXTS[TRAIN]
    assert valid.read_bytes() == TEXTS[VALID]


def test_an_interrupted_transfer_is_resumed(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut_at = 70_000
    train, _ = fetch_tinystories(tmp_path)
    assert train.read_bytes() == TEXTS[TRAIN]
    ranges = [range_ for method, path, range_ in hub.requests if method == "GET" and path == FOLDER + TRAIN]
    assert ranges == [None, "bytes=70000-"]


def test_a_file_with_a_wrong_checksum_is_refused(hub, tmp_path):
    hub.corrupt = True
    with pytest.raises(ConnectionError, match=r"arrived with the SHA-256 \w{8}… instead of \w{8}…"):
        fetch_tinystories(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_server_that_names_no_checksum_is_refused_before_the_transfer(hub, tmp_path):
    hub.names_hash = False
    with pytest.raises(DownloadError, match="the server gives no SHA-256 of TinyStories"):
        fetch_tinystories(tmp_path)
    assert os.listdir(tmp_path) == []
    assert {method for method, *_ in hub.requests} == {"HEAD"}


def check_sentence(error, endpoint):
    sentence = str(error)
    assert sentence.startswith(f"TinyStories could not be fetched from {endpoint} (")
    assert "\n" not in sentence
    for advice in (TRAIN, VALID, "--config configs/text.yaml", "--data.train_files", "--data.valid_files",
                   "HF_ENDPOINT", "python -m tslm fit"):
        assert advice in sentence


def test_without_network_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(DownloadError) as caught:
            fetch_tinystories(tmp_path)
    check_sentence(caught.value, endpoint)
    assert os.listdir(tmp_path) == []


def test_a_silent_server_is_not_waited_for(hub, tmp_path):
    hub.may_answer.clear()
    with pytest.raises(DownloadError) as caught:
        fetch_tinystories(tmp_path, timeout=0.1)
    check_sentence(caught.value, hub.url)
    assert not hub.may_answer.is_set()
    assert {method for method, *_ in hub.requests} == {"HEAD"}


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_refusing_server_is_explained(status, hub, tmp_path):
    hub.status = status
    with pytest.raises(DownloadError) as caught:
        fetch_tinystories(tmp_path)
    check_sentence(caught.value, hub.url)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_disk_is_not_reported_as_one_of_the_network(hub, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fetch_tinystories(tmp_path)
    assert not isinstance(caught.value, ConnectionError)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fetch_tinystories(tmp_path / "file" / "cache")


def test_with_existing_files_neither_the_hub_client_nor_torch_is_imported(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text)
    source = (
        "import sys; from tslm.data.tinystories import fetch_tinystories; fetch_tinystories(sys.argv[1]); "
        "assert not {'huggingface_hub', 'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", source, tmp_path], check=True, timeout=60)
