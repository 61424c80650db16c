"""Fixtures of the process-level tests.

Nothing is built here: the binaries are those in $WHIT_BIN_DIR (default build/release/bin). The
model is a tiny one that whit_make_tiny_model writes; $WHIT_MODEL names a real one for the tests
that need it.
"""

import importlib
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN_DIR = pathlib.Path(os.environ.get("WHIT_BIN_DIR", ROOT / "build/release/bin")).resolve()


def pytest_configure(config):
    needed = ("whitd", "whit", "whit-calibrate", "whit-eval", "whit-simulate",
              "whit_make_tiny_model")
    missing = [name for name in needed if not (BIN_DIR / name).exists()]
    if missing:
        pytest.exit(f"{', '.join(missing)} not in {BIN_DIR}: build first, or set WHIT_BIN_DIR", 2)
    folder = tempfile.TemporaryDirectory(prefix="whit-stubs-")
    config.add_cleanup(folder.cleanup)
    stubs = folder.name
    code = protoc.main(
        ["protoc", f"-I{ROOT / 'proto'}", f"-I{pathlib.Path(protoc.__file__).parent / '_proto'}",
         f"--python_out={stubs}", f"--grpc_python_out={stubs}",
         "google/api/annotations.proto", "google/api/http.proto", "whit/v1/text_generation.proto",
         "vllm/grpc/engine/vllm_engine.proto",
         "xds/data/orca/v3/orca_load_report.proto", "xds/service/orca/v3/orca.proto"])
    assert code == 0
    sys.path.insert(0, stubs)
    importlib.invalidate_caches()


def pytest_terminal_summary(terminalreporter):
    if not os.environ.get("WHIT_MODEL"):
        terminalreporter.write_line(
            "WHIT_MODEL is not set: the tests on a real model were SKIPPED", yellow=True)


@pytest.fixture(scope="session")
def bin_dir():
    return BIN_DIR


def make_model(path, *flags):
    subprocess.run([BIN_DIR / "whit_make_tiny_model", path, *flags], check=True)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Answers at once: 2,048 tokens of context."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    """Large enough that a request is still under way when a test looks at it."""
    return make_model(
        tmp_path_factory.mktemp("models") / "slow.gguf", "--context=32768", "--hidden=512",
        "--ffn=1024", "--layers=8", "--heads=8", "--kv-heads=4", "--head-dim=64")


@pytest.fixture(scope="session")
def real_model():
    path = os.environ.get("WHIT_MODEL")
    if not path:
        pytest.skip("WHIT_MODEL is not set")
    return path


@pytest.fixture
def start():
    """start(model, *flags) runs a whitd for one test."""
    from whitd import Whitd

    running = []

    def start_one(model, *flags):
        server = Whitd(BIN_DIR / "whitd", model, *flags)
        running.append(server)
        return server

    yield start_one
    for server in running:
        server.kill()


@pytest.fixture
def full_server(start, slow_model):
    """A server and make_room(): one request runs, and none may wait, until that ends it."""
    from whitd import eventually, request

    server = start(slow_model, "--kv-cache-bytes=1G", "--max-running=1", "--max-queue-requests=0")
    with server.client() as stub:
        call = stub.GenerateStream(request("Go on", max_new_tokens=500, ignore_eos=True))
        next(call)
        next(call)  # by now the rate counts a token
        # So long do clients stay away: much longer, while the rate has just begun to count.
        eventually(lambda: server.capacity().estimated_wait_seconds < 3, "little is left")
        yield server, call.cancel
        call.cancel()


@pytest.fixture(scope="module")
def server(tiny_model):
    """A whitd that the tests of a module share; it must be alive and empty after each.

    At fp16: there, what one stream gets does not depend on what was served before.
    """
    from whitd import Whitd

    shared = Whitd(BIN_DIR / "whitd", tiny_model, "--kv-cache-bytes=64M", "--kv-policy=fp16",
                   "--reflection")
    yield shared
    assert shared.stop() == 0


@pytest.fixture(scope="module")
def authority():
    """Signs the certificates of secured servers and of their clients."""
    from certificates import Authority

    return Authority()


@pytest.fixture
def files(tmp_path, authority):
    from secured import Files

    return Files(tmp_path, authority)


@pytest.fixture(scope="module")
def secured(tmp_path_factory, tiny_model, authority):
    """TLS and tokens at tls_address; at address a plaintext listener."""
    from secured import Files
    from whitd import Whitd

    files = Files(tmp_path_factory.mktemp("secured"), authority)
    server = Whitd(BIN_DIR / "whitd", tiny_model, "--kv-cache-bytes=64M", *files.tls,
                   f"--auth-tokens-file={files.tokens}", "--listen-plaintext=127.0.0.1:0",
                   "--reflection", "--channelz")
    server.files = files
    server.tls_address = server.address
    server.address = server.wait_for_event("ready")["listen_plaintext"]
    yield server
    assert server.stop() == 0


@pytest.fixture
def whit():
    """whit(server, *arguments) runs the client and returns what it did."""

    def run(server, *arguments, input=None, timeout=30):
        return subprocess.run(
            [BIN_DIR / "whit", *arguments], input=input, capture_output=True, text=True,
            timeout=timeout, env=clean_environment(WHIT_SERVER=server.address if server else ""))

    return run


def clean_environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WHIT_")}
    return {**kept, **more}
