"""A whitd process and a client of it."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families
from whit.v1 import text_generation_pb2 as pb
from whit.v1 import text_generation_pb2_grpc as pb_grpc

TIMEOUT = 60  # seconds after which something that a test waits for is broken


def eventually(condition, what):
    """Waits for what another process is about to do."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT} s in vain: {what}"
        time.sleep(0.01)


class Whitd:
    """Listens on ports that the system chooses; its log is read as it comes."""

    def __init__(self, binary, model, *flags, wait=True, variables=None):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WHIT_")}
        environment.update(variables or {})
        self.process = subprocess.Popen(
            [binary, f"--model={model}", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0",
             "--log-format=json", "--log-level=debug", *flags],
            stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        self._log_changed = threading.Condition()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if wait:
            ready = self.wait_for_event("ready")
            self.address = ready["listen"].split(",")[0]
            self.metrics_address = ready["metrics"]

    def _read_log(self):
        for line in self.process.stderr:
            with self._log_changed:
                self.log.append(json.loads(line))
                self._log_changed.notify_all()
        with self._log_changed:
            self.log.append({"event": "end of log"})
            self._log_changed.notify_all()

    def wait_for_event(self, prefix, **fields):
        """The first line of the log whose event begins so and that has these fields."""

        def find():
            for line in self.log:
                if line["event"].startswith(prefix) and fields.items() <= line.items():
                    return line
            return None

        def found_or_ended():
            return find() or (self.log and self.log[-1]["event"] == "end of log")

        with self._log_changed:
            assert self._log_changed.wait_for(found_or_ended, TIMEOUT), self.log
            assert find(), f"no {prefix} {fields} in {self.log}"
            return find()

    @contextlib.contextmanager
    def client(self, *options):
        with grpc.insecure_channel(self.address, options) as channel:
            yield pb_grpc.TextGenerationServiceStub(channel)

    def capacity(self):
        with self.client() as stub:
            return stub.GetCapacity(pb.GetCapacityRequest(), timeout=TIMEOUT)

    def wait_until_empty(self):
        def empty():
            now = self.capacity()
            return (now.requests_running, now.requests_waiting, now.kv_cache_used_bytes,
                    now.kv_cache_reserved_bytes) == (0, 0, 0, 0)

        eventually(empty, "the server is empty")

    def check_alive(self):
        """It answers a plain request as ever."""
        with self.client() as stub:
            reply = stub.Generate(request("alive?", max_new_tokens=4, unary=True), timeout=TIMEOUT)
            assert reply.usage.completion_tokens == 4

    def metrics_text(self):
        url = f"http://{self.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            return reply.read().decode()

    def metrics(self):
        """{(name, ((label, value), ...)): value}"""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.metrics_text())
            for sample in family.samples
        }

    def metric(self, name, **labels):
        return self.metrics()[(name, tuple(sorted(labels.items())))]

    @property
    def info(self):
        return psutil.Process(self.process.pid)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        """Its exit status; the log is complete then."""
        status = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return status

    def stop(self):
        self.signal()
        return self.wait()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def request(prompt, unary=False, max_new_tokens=None, stop=(), stop_token_ids=(), ignore_eos=False,
            logprobs=None, request_id="", timeout=None, **sampling):
    """`prompt` is text, a list of ids, or a list of (role, content)."""
    made = pb.GenerateRequest() if unary else pb.GenerateStreamRequest()
    if isinstance(prompt, str):
        made.prompt.text = prompt
    elif prompt and isinstance(prompt[0], tuple):
        for role, content in prompt:
            made.prompt.chat.messages.add(role=role, content=content)
    else:
        made.prompt.token_ids.ids.extend(prompt)
        made.prompt.token_ids.SetInParent()
    if max_new_tokens is not None:
        made.stopping.max_new_tokens = max_new_tokens
    made.stopping.stop.extend(stop)
    made.stopping.stop_token_ids.extend(stop_token_ids)
    made.stopping.ignore_eos = ignore_eos
    if logprobs is not None:
        made.logprobs = logprobs
    made.request_id = request_id
    for name, value in sampling.items():
        setattr(made.sampling, name, value)
    return made


class Stream:
    """All of a stream that ended: its pieces, its last message, its status."""

    def __init__(self, call):
        self.pieces = []
        self.code = grpc.StatusCode.OK
        self.details = ""
        try:
            self.pieces.extend(call)
        except grpc.RpcError as error:
            self.code = error.code()
            self.details = error.details()
        self.trailers = dict(call.trailing_metadata() or ())

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self):
        return [token for piece in self.pieces for token in piece.token_ids]

    @property
    def last(self):
        """Exactly one message has a finish reason, and it is the last."""
        ends = [piece.finish_reason != pb.FINISH_REASON_UNSPECIFIED for piece in self.pieces]
        assert ends and ends == [False] * (len(ends) - 1) + [True], self.pieces
        return self.pieces[-1]
