"""OpenAI's client through the real gateway smg, with two whitd behind it."""

import collections
import concurrent.futures
import itertools
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from steady_load import Load, free_ports
from whit.v1 import text_generation_pb2 as pb
from whitd import TIMEOUT, eventually, request

LIST = "tests/integration/optional_requirements.txt"
openai = pytest.importorskip("openai", reason=f"openai is not installed (see {LIST})")
SMG = pathlib.Path(sys.executable).parent / "smg"
if not SMG.exists():
    pytest.skip(f"smg is not installed (see {LIST})", allow_module_level=True)

HELLO = [{"role": "user", "content": "Hello there"}]


class Gateway:
    def __init__(self, servers, log, policy="least_load"):
        port, metrics_port = free_ports(2)
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [SMG, "launch", "--host=127.0.0.1", f"--port={port}", f"--policy={policy}",
                 "--prometheus-host=127.0.0.1", f"--prometheus-port={metrics_port}",
                 "--health-check-interval-secs=1", "--health-failure-threshold=1", "--worker-urls",
                 *(f"grpc://{server.address}" for server in servers)], stdout=out, stderr=out)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none",
                                    max_retries=0, timeout=TIMEOUT)
        eventually(lambda: self.healthy_workers() == len(servers), "the workers are registered")
        eventually(self.knows_the_tokenizer, "the gateway has the tokenizer")

    def get(self, path):
        return self.client.get(path, cast_to=object)

    def healthy_workers(self):
        assert self.process.poll() is None, self.log.read_text(errors="replace")
        try:
            workers = self.get(str(self.client.base_url.copy_with(path="/workers")))["workers"]
        except openai.APIError:
            return 0
        return sum(worker["is_healthy"] for worker in workers)

    def knows_the_tokenizer(self):
        try:
            self.chat(max_tokens=1)
        except openai.APIStatusError:
            return False
        return True

    def chat(self, messages=HELLO, **options):
        return self.client.chat.completions.create(model="Tiny", messages=messages, **options)

    def complete(self, prompt="Hello there", **options):
        return self.client.completions.create(model="Tiny", prompt=prompt, **options)

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def gateway(tmp_path):
    """gateway(servers, policy) runs smg before them for one test."""
    gateways = []

    def start_one(servers, *policy):
        gateways.append(Gateway(servers, tmp_path / "smg.log", *policy))
        return gateways[-1]

    yield start_one
    for one in gateways:
        one.stop()


@pytest.fixture(scope="module")
def quick(tiny_model, tmp_path_factory):
    """A gateway and its two servers, which the tests of a module share."""
    from conftest import BIN_DIR
    from whitd import Whitd

    servers = [Whitd(BIN_DIR / "whitd", tiny_model, "--kv-cache-bytes=64M", "--kv-policy=fp16")
               for _ in range(2)]
    shared = Gateway(servers, tmp_path_factory.mktemp("smg") / "smg.log")
    yield shared, servers
    shared.stop()
    assert [server.stop() for server in servers] == [0, 0]


def text_of(stream):
    """Of each choice of a stream."""
    texts = collections.defaultdict(str)
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += (choice.text if hasattr(choice, "text")
                                    else choice.delta.content or "")
    return dict(texts)


def finished(server):
    return sum(value for (name, _), value in server.metrics().items()
               if name == "whit_requests_total")


def test_chat_says_what_our_own_service_says(quick):
    """So the gateway's template and tokenizer are ours."""
    gateway, servers = quick
    messages = [{"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What's 12+34? \u00e9\u4e2d\U0001f600\n  ok"}]
    with servers[0].client() as stub:
        expected = stub.Generate(request([(m["role"], m["content"]) for m in messages], unary=True,
                                         max_new_tokens=20))
    answer = gateway.chat(messages, max_tokens=20)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == 20
    assert text_of(gateway.chat(messages, max_tokens=20, stream=True)) == {0: expected.text}


def test_completions_say_what_our_own_service_says(quick):
    gateway, servers = quick
    with servers[0].client() as stub:
        expected = stub.Generate(request("Once upon", unary=True, max_new_tokens=40))
    answer = gateway.complete("Once upon", max_tokens=40)
    assert answer.choices[0].text == expected.text
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert text_of(gateway.complete("Once upon", max_tokens=40, stream=True)) == {0: expected.text}
    stop = expected.text[20:23]
    until = gateway.complete("Once upon", max_tokens=40, stop=stop)
    assert until.choices[0].text == expected.text.split(stop)[0]
    assert until.choices[0].finish_reason == "stop"


def test_several_choices_and_logprobs(quick):
    gateway, _ = quick
    answer = gateway.chat(n=3, temperature=1, seed=7, max_tokens=10, logprobs=True, top_logprobs=2)
    texts = {choice.index: choice.message.content for choice in answer.choices}
    assert len(set(texts.values())) == 3
    for choice in answer.choices:
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    assert text_of(gateway.chat(n=3, temperature=1, seed=7, max_tokens=10, stream=True)) == texts


def test_the_readmes_program_runs(quick):
    gateway, _ = quick
    readme = (pathlib.Path(__file__).resolve().parents[2] / "README.md").read_text()
    (program,) = re.findall(r"```python\n(import openai\n.*?)```", readme, re.DOTALL)
    assert "http://127.0.0.1:8000/v1" in program
    program = program.replace("http://127.0.0.1:8000/v1", str(gateway.client.base_url))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                         timeout=TIMEOUT)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout) > 100


def test_both_servers_serve(quick):
    gateway, servers = quick
    before = [finished(server) for server in servers]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: gateway.chat(max_tokens=50), range(40)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    shares = [finished(server) - first for server, first in zip(servers, before)]
    assert sum(shares) == 40
    assert min(shares) > 0


def test_what_is_not_supported_is_a_bad_request(quick):
    gateway, _ = quick
    with pytest.raises(openai.BadRequestError, match="structured output"):
        gateway.chat(max_tokens=5, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError, match="max_new_tokens is 5000"):
        gateway.chat(max_tokens=5000)


@pytest.fixture
def slow_pair(start, slow_model):
    """Two servers whose requests take seconds."""

    def start_them(*flags):
        return [start(slow_model, "--kv-cache-bytes=1G", "--kv-policy=fp16", *flags)
                for _ in range(2)]

    return start_them


def running(servers):
    return sum(server.capacity().requests_running for server in servers)


def test_a_client_that_leaves_ends_its_generation(gateway, slow_pair):
    servers = slow_pair()
    through = gateway(servers)
    stream = through.complete(max_tokens=20_000, stream=True)
    next(iter(stream))
    assert running(servers) == 1
    stream.close()
    for server in servers:
        server.wait_until_empty()
    # And before there is anything to show: then it has a socket, but no stream yet.
    hasty = through.client.with_options(timeout=1)
    with pytest.raises(openai.APITimeoutError):
        hasty.completions.create(model="Tiny", prompt="a " * 12_000, max_tokens=10, stream=True)
    for server in servers:
        server.wait_until_empty()


def test_a_full_pair_is_too_many_requests(gateway, slow_pair):
    servers = slow_pair("--max-running=1", "--max-queue-requests=0")
    through = gateway(servers, "round_robin")
    streams = [through.complete(max_tokens=20_000, stream=True) for _ in servers]
    for stream in streams:
        next(iter(stream))
    assert [server.capacity().requests_running for server in servers] == [1, 1]
    for streamed in (False, True):
        with pytest.raises(openai.RateLimitError):
            through.complete(max_tokens=5, stream=streamed)
    # It has asked both.
    assert all(server.metric("whit_admission_rejections_total", reason="queue_full") >= 1
               for server in servers)
    for stream in streams:
        stream.close()
    for server in servers:
        server.wait_until_empty()
    assert through.complete(max_tokens=5).usage.completion_tokens == 5


CLIENTS = 4


def load_on(through):
    """Each result is a finish reason, or tells of an error."""

    def complete():
        reason = None
        try:
            for chunk in through.complete(max_tokens=150, stream=True):
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
        except openai.APIError as error:
            return f"{reason} {error!r}"
        return reason

    return Load(CLIENTS, complete, served=lambda result: result == "length")


def test_sigterm_under_load_loses_no_stream(gateway, slow_pair):
    servers = slow_pair()
    load = load_on(gateway(servers))
    load.wait_for(2)
    eventually(lambda: running(servers[:1]), "it has something to finish")
    assert servers[0].stop() == 0
    load.wait_for(8)
    load.stop()
    assert load.failed == []
    servers[1].wait_until_empty()


def reads_on(stream):
    """Whether a stream gives a hundred more tokens or so, and no error."""
    try:
        return len(list(itertools.islice(stream, 100))) == 100
    except openai.APIError:
        return False


def test_sigkill_under_load_fails_its_own_streams_alone(gateway, slow_pair):
    servers = slow_pair()
    through = gateway(servers, "round_robin")
    streams = [iter(through.complete(max_tokens=20_000, stream=True)) for _ in servers]
    for stream in streams:
        next(stream)
    assert [running([server]) for server in servers] == [1, 1]
    load = load_on(through)
    load.wait_for(4)
    servers[0].signal(signal.SIGKILL)
    servers[0].wait()
    load.wait_for(8)
    load.stop()
    # Those of the load at most once a client; what had not begun was sent to the other.
    assert len(load.failed) <= CLIENTS, load.failed
    # What it had sent is read first.
    while all(going_on := [reads_on(stream) for stream in streams]):
        pass
    assert sorted(going_on) == [False, True]
    ended = [line for line in servers[1].log if line.get("method") == "VllmEngine.Generate"]
    assert {line["code"] for line in ended} == {"OK"}
