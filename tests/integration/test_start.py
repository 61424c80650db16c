"""Starting: what cannot be served is said clearly, and the exit status tells."""

import pathlib
import socket
import struct
import subprocess

import grpc
import pytest
from conftest import BIN_DIR, clean_environment
from whitd import Whitd


def fails(*flags, status=1):
    """The error that whitd ends with."""
    done = subprocess.run(
        [BIN_DIR / "whitd", "--listen=127.0.0.1:0", "--metrics-listen=off", *flags],
        capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    return done.stderr


def corrupt(model, path, change):
    path.write_bytes(change(pathlib.Path(model).read_bytes()))
    return path


def test_a_missing_model_is_named(tmp_path):
    error = fails(f"--model={tmp_path}/nowhere.gguf")
    assert "NOT_FOUND" in error and "nowhere.gguf" in error and "No such file" in error


@pytest.mark.parametrize("change", [
    lambda data: b"", lambda data: data[:3], lambda data: data[:100], lambda data: data[:-1],
    lambda data: data[: len(data) // 2],
])
def test_a_truncated_model_is_refused(tiny_model, tmp_path, change):
    error = fails(f"--model={corrupt(tiny_model, tmp_path / 'cut.gguf', change)}")
    assert "INVALID_ARGUMENT" in error and "cut.gguf" in error


@pytest.mark.parametrize("change", [
    lambda data: b"not a model at all" * 100,
    lambda data: b"GGUF" + bytes(200),
    lambda data: b"GGUF" + b"\xff" * 200,
    lambda data: data[:24] + b"\xff" * 64 + data[88:],
])
def test_garbage_is_refused(tiny_model, tmp_path, change):
    error = fails(f"--model={corrupt(tiny_model, tmp_path / 'bad.gguf', change)}")
    assert "cannot serve" in error and "bad.gguf" in error


def test_a_folder_is_no_model(tmp_path):
    assert "not a regular file" in fails(f"--model={tmp_path}")


def test_an_unknown_architecture_is_named(tiny_model, tmp_path):
    def rename(data):
        assert data.count(b"general.architecture") == 1
        at = data.index(b"general.architecture") + len(b"general.architecture")
        # A value of type string (8), its length, its bytes.
        assert data[at : at + 17] == struct.pack("<IQ", 8, 5) + b"llama"
        return data[: at + 12] + b"mamba" + data[at + 17 :]

    error = fails(f"--model={corrupt(tiny_model, tmp_path / 'mamba.gguf', rename)}")
    assert "UNIMPLEMENTED" in error and "mamba" in error


def test_an_unsupported_tensor_type_is_named(tiny_model, tmp_path):
    def retype(data):
        name = b"blk.0.attn_q.weight"
        assert data.count(name) == 1
        at = data.index(name) + len(name)
        (dimensions,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dimensions
        return data[:at] + struct.pack("<I", 20) + data[at + 4 :]  # IQ4_NL

    error = fails(f"--model={corrupt(tiny_model, tmp_path / 'iq.gguf', retype)}")
    assert "UNIMPLEMENTED" in error and "20" in error


def test_a_port_in_use_is_named(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        error = fails(f"--model={tiny_model}", f"--listen={address}")
        assert f"cannot listen on {address}: Address already in use" in error
        error = fails(f"--model={tiny_model}", f"--metrics-listen={address}")
        assert f"cannot serve metrics on {address}" in error


def test_two_servers_do_not_share_a_port(start, tiny_model):
    first = start(tiny_model)
    error = fails(f"--model={tiny_model}", f"--listen={first.address}")
    assert "Address already in use" in error
    first.check_alive()


def test_a_cache_too_small_for_one_token_is_refused(slow_model):
    error = fails(f"--model={slow_model}", "--kv-cache-bytes=64K")
    assert "KV cache of 64.0 KiB" in error


@pytest.mark.parametrize("flags, message", [
    ([], "--model"),
    (["--model=x", "--threads=0"], "'0'"),
    (["--model=x", "--kv-cache-bytes=lots"], "'lots'"),
    (["--model=x", "--colour=red"], "--colour"),
])
def test_a_wrong_flag_is_a_usage_error(flags, message):
    assert message in fails(*flags, status=2)


def test_environment_variables_are_flags(tiny_model):
    done = subprocess.run([BIN_DIR / "whitd"], capture_output=True, text=True, timeout=60,
                          env=clean_environment(WHIT_MODEL=str(tiny_model), WHIT_THREADS="none"))
    assert done.returncode == 2
    assert "'none'" in done.stderr


def test_listens_on_every_address(start, tiny_model, tmp_path):
    socket_path = tmp_path / "whit.sock"
    server = start(tiny_model, f"--listen=unix:{socket_path}")
    addresses = server.wait_for_event("ready")["listen"].split(",")
    assert len(addresses) == 2 and addresses[1] == f"unix:{socket_path}"
    for address in addresses:
        server.address = address
        server.check_alive()


def test_metrics_can_be_off(start, tiny_model):
    server = start(tiny_model, "--metrics-listen=off")
    assert server.metrics_address == "off"
    server.check_alive()


def test_a_model_that_fails_to_load_ends_a_health_watch(tmp_path):
    # The listener is open while the model loads: a watcher must not keep the process up.
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    server = Whitd(BIN_DIR / "whitd", bad, wait=False)
    assert server.wait() == 1
    assert server.log[-2]["event"] == "cannot serve"
    assert grpc.StatusCode[server.log[-2]["code"]] == grpc.StatusCode.INVALID_ARGUMENT
