"""A Prometheus that scrapes whitd as deploy/prometheus says, only faster; and what it is asked."""

import contextlib
import json
import math
import pathlib
import random
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request

import grpc
import pytest
import yaml
from steady_load import free_ports
from whitd import TIMEOUT, eventually, request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/prometheus"


def tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return path


class Prometheus:
    """Scrapes the targets every half second, and evaluates the rules as often."""

    def __init__(self, folder, targets):
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms",
                            "evaluation_interval": "500ms"}
        config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
        whit = next(job for job in config["scrape_configs"] if job["job_name"] == "whit")
        assert whit.pop("dns_sd_configs")
        whit["static_configs"] = [{"targets": targets}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}",
             f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdout=self.log, stderr=subprocess.STDOUT)
        eventually(self.ready, "Prometheus is ready")

    def ready(self):
        assert self.process.poll() is None, pathlib.Path(self.log.name).read_text()
        with contextlib.suppress(OSError), \
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=TIMEOUT):
            return True
        return False

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def has_data(self, expression):
        """Whether it gives a number now."""
        result = self.get("query", query=expression)["result"]
        return any(not math.isnan(float(series["value"][1])) for series in result)

    def values_of(self, label):
        return set(self.get(f"label/{label}/values"))

    def stop(self):
        self.process.terminate()
        self.process.wait(TIMEOUT)
        self.log.close()


@contextlib.contextmanager
def load(server, clients, seed=1):
    """So many clients, one request after another each, of all lengths, until the block ends."""
    stop = threading.Event()
    unexpected = []

    def run(number):
        draw = random.Random(seed * 1000 + number)
        with server.client() as stub:
            while not stop.is_set():
                prompt = [5] * 200 + [draw.randrange(10, 200) for _ in range(draw.randrange(600))]
                call = stub.GenerateStream(
                    request(prompt, max_new_tokens=draw.randrange(50, 400), ignore_eos=True),
                    timeout=TIMEOUT)
                try:
                    for _ in call:
                        if stop.is_set():
                            call.cancel()
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                            grpc.StatusCode.CANCELLED):
                        unexpected.append(error)
                    stop.wait(0.05)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert not unexpected, unexpected[0]
