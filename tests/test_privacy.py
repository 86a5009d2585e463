"""Nothing phones home: training, evaluating and generating open no connection and look up no name."""

import socket
import sys

import pytest

from tslm.__main__ import main

EVENTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg",
          "urllib.Request", "http.client.connect"}
seen: list[tuple[str, str]] = []


@pytest.fixture
def connections():
    """The attempts to reach another machine during a test, by audit events, which no library can avoid."""
    if not hasattr(sys, "_tslm_audit"):
        sys._tslm_audit = True  # a hook cannot be removed
        sys.addaudithook(lambda event, arguments: seen.append((event, repr(arguments))) if event in EVENTS else None)
    seen.clear()
    return seen


def test_the_hook_notices_a_connection(connections):
    with socket.socket(socket.AF_INET) as one, pytest.raises(OSError):  # noqa: PT011
        one.connect(("127.0.0.1", 9))
    assert [event for event, _ in connections] == ["socket.connect"]


def test_training_evaluating_and_generating_open_no_connection(project, connections):
    small = [
        "--data.toy_stories=300", "--data.cache_dir=cache", "--data.vocab_size=300", "--data.batch_size=4",
        "--data.context_length=32", "--data.num_workers=1", "--model.d_model=16", "--model.num_layers=1",
        "--model.num_heads=2", "--model.d_ff=32", "--trainer.max_steps=2", "--trainer.precision=32-true",
        "--trainer.accelerator=cpu", "--trainer.limit_val_batches=2", "--generation.max_new_tokens=2",
    ]
    assert main(["fit", *small]) == 0
    assert main(["validate", "--trainer.limit_val_batches=2"]) == 0
    assert main(["predict", "--generation.max_new_tokens=2"]) == 0
    assert main(["generate", "--prompt=Once", "--max_new_tokens=2"]) == 0
    assert main(["runs", "--verify"]) == 0
    assert connections == []
