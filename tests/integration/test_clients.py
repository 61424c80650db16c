"""The clients that the README shows, as it shows them."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from whitd import TIMEOUT, Stream, request

ROOT = pathlib.Path(__file__).resolve().parents[2]
ADDRESS = "127.0.0.1:50051"  # in the README


def snippet(language):
    """The first block of this language in the section on clients."""
    section = (ROOT / "README.md").read_text().split("\n## Clients\n")[1].split("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


def run(command, **options):
    got = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, **options)
    assert got.returncode == 0, got.stderr
    return got.stdout


@pytest.fixture
def grpcurl():
    path = shutil.which("grpcurl", path=ROOT / "build/tools") or shutil.which("grpcurl")
    if path is None:
        pytest.skip("grpcurl is not installed: go install could not build it")
    return path


def test_grpcurl(server, grpcurl, bin_dir):
    command = (snippet("sh").replace(ADDRESS, server.address)
               .replace("build/release/share", str(bin_dir.parent / "share")))
    assert command.startswith("grpcurl ")
    said = run(["bash", "-c", command.replace("grpcurl", grpcurl, 1)], cwd=ROOT)
    assert said.count('"finishReason"') == 1
    assert '"completionTokens"' in said


def test_grpcurl_needs_no_descriptors_where_the_server_reflects(server, grpcurl):
    assert "whit.v1.TextGenerationService" in run(
        [grpcurl, "-plaintext", server.address, "list"]).split()


def test_grpcurl_checks_health(server, grpcurl, bin_dir):
    """As grpc_health_probe does."""
    said = run([grpcurl, "-plaintext", "-protoset", bin_dir.parent / "share/whit/whit.protoset",
                "-d", '{"service": "whit.v1.TextGenerationService"}', server.address,
                "grpc.health.v1.Health/Check"])
    assert '"SERVING"' in said


def test_python(server, tmp_path):
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"`python (-m grpc_tools\.protoc [^`]*)`", readme)[1].split()
    command[command.index("proto")] = str(ROOT / "proto")
    run([sys.executable, *command], cwd=tmp_path)
    program = snippet("python")
    assert ADDRESS in program
    said = run([sys.executable, "-c", program.replace(ADDRESS, server.address)], cwd=tmp_path)
    assert said


def test_cpp(server, bin_dir):
    with server.client() as stub:
        expected = Stream(stub.GenerateStream(request("Once upon a time", max_new_tokens=32)))
    assert run([bin_dir / "whit_readme_client", server.address]) == expected.text
