"""Envoy as the gateway before two whitd, with the configuration of deploy/envoy."""

import signal
import ssl
import subprocess

import grpc
import pytest
from gateway import EventStream, Gateway, Reply, envoy_binary, make_certificate, write_config
from grpc_health.v1 import health_pb2, health_pb2_grpc
from steady_load import Load
from whit.v1 import text_generation_pb2 as pb
from whitd import Stream, Whitd, eventually, request

ENDLESS = dict(max_new_tokens=20_000, ignore_eos=True)


def body(prompt, **stopping):
    """The request as JSON."""
    return {"prompt": {"text": prompt}, "stopping": stopping}


@pytest.fixture(scope="module")
def protoset(bin_dir):
    path = bin_dir.parent / "share/whit/whit.protoset"
    assert path.exists(), f"{path} is not built"
    return path


@pytest.fixture(scope="module")
def pair(bin_dir, slow_model, protoset, tmp_path_factory):
    """(gateway, servers): two that the tests of this module share, each with room for four."""
    envoy_binary()
    flags = ("--kv-cache-bytes=512M", "--max-running=4", "--max-queue-requests=0")
    servers = [Whitd(bin_dir / "whitd", slow_model, *flags) for _ in range(2)]
    gateway = Gateway(tmp_path_factory.mktemp("envoy"), protoset, servers)
    yield gateway, servers
    gateway.stop()
    assert [server.stop() for server in servers] == [0, 0]


@pytest.fixture
def start_pair(start, slow_model, protoset, tmp_path):
    """start_pair(*flags) runs a pair for one test."""
    envoy_binary()
    gateways = []

    def start_both(*flags):
        servers = [start(slow_model, "--kv-cache-bytes=512M", *flags) for _ in range(2)]
        gateways.append(Gateway(tmp_path, protoset, servers))
        return gateways[-1], servers

    yield start_both
    for gateway in gateways:
        gateway.stop()


def test_the_configuration_is_valid(protoset, tmp_path):
    config = write_config(tmp_path, protoset, [])
    got = subprocess.run([envoy_binary(), "--mode", "validate", "-c", config],
                         capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
    assert "deprecated" not in got.stderr.lower()


def test_events_come_as_they_are_made_and_cancel_reaches_the_server(pair):
    gateway, servers = pair
    streams = [EventStream(gateway, body("Go on", **ENDLESS)) for _ in range(4)]
    for stream in streams:
        events = iter(stream)
        assert next(events)["token_ids"]
        assert next(events)["token_ids"]
    # They are far from their ends, and both servers have some.
    running = [server.capacity().requests_running for server in servers]
    assert sum(running) == 4 and min(running) > 0
    for stream in streams:
        stream.cancel()
    for server in servers:
        server.wait_until_empty()
        server.wait_for_event("request", code="CANCELLED")


def test_http_gets_what_grpc_gets(pair):
    gateway, _ = pair
    got = Reply(gateway, "/v1/generate_stream", body("Once", max_new_tokens=20, ignore_eos=True))
    assert (got.status, got.headers["content-type"]) == (200, "text/event-stream")
    *pieces, last = got.events
    assert all("finish_reason" not in piece for piece in pieces)
    assert last["finish_reason"] == "FINISH_REASON_LENGTH"
    assert last["usage"]["completion_tokens"] == 20
    plain = Stream(gateway.stub().GenerateStream(
        request("Once", max_new_tokens=20, ignore_eos=True)))
    assert "".join(event.get("text", "") for event in got.events) == plain.text
    unary = Reply(gateway, "/v1/generate", body("Once", max_new_tokens=20, ignore_eos=True))
    assert unary.events[0]["text"] == plain.text


@pytest.mark.parametrize("path, sent, expected", [
    ("/v1/score", {"context": {"text": "Once"}, "continuation": {"text": " upon"}}, "total_logprob"),
    ("/v1/tokenize", {"text": "Once"}, "token_ids"),
    ("/v1/detokenize", {"token_ids": [276]}, "text"),
    ("/v1/model", None, "vocabulary_size"),
    ("/v1/capacity", None, "headroom_tokens_floor"),
])
def test_every_method_is_there_for_http(pair, path, sent, expected):
    got = Reply(pair[0], path, sent)
    assert got.status == 200
    assert expected in got.events[0]


def test_a_bad_request_is_400_and_says_why(pair):
    gateway, _ = pair
    got = Reply(gateway, "/v1/generate_stream", body("Once", max_new_tokens=0))
    assert (got.status, got.headers["whit-reason"]) == (400, "invalid")
    assert "stopping.max_new_tokens is 0" in got.events[0]["message"]
    assert Reply(gateway, "/v1/generate_stream", {"prompt": "Once"}).status == 400
    assert Reply(gateway, "/v1/nothing", {}).status == 404


def test_health_is_there_for_grpc_and_for_load_balancers(pair):
    gateway, _ = pair
    with grpc.insecure_channel(gateway.address) as channel:
        check = health_pb2.HealthCheckRequest(service="whit.v1.TextGenerationService")
        assert health_pb2_grpc.HealthStub(channel).Check(check).status == (
            health_pb2.HealthCheckResponse.SERVING)
    assert Reply(gateway, "/healthz").status == 200


def test_a_full_server_is_passed_over_and_full_servers_are_429(start_pair):
    gateway, servers = start_pair("--max-running=1", "--max-queue-requests=0")
    stub = gateway.stub()
    # Whichever server one gets, the other has room.
    calls = [stub.GenerateStream(request("Go on", **ENDLESS)) for _ in range(2)]
    for call in calls:
        next(call)
        next(call)  # by now the rate counts a token
    assert [server.capacity().requests_running for server in servers] == [1, 1]
    before = [rejections(server) for server in servers]
    got = Reply(gateway, "/v1/generate_stream", body("Me too", **ENDLESS))
    assert got.status == 429
    assert int(got.headers["retry-after"]) > 2
    assert got.headers["whit-reason"] == "queue_full"
    assert got.events[0]["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    refused = Stream(stub.GenerateStream(request("Me too", **ENDLESS)))
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(refused.trailers["grpc-retry-pushback-ms"]) > 2_000
    # Each of the two was asked once by either: none was bothered again before its time.
    assert [rejections(server) - n for server, n in zip(servers, before)] == [2, 2]
    for call in calls:
        call.cancel()


def rejections(server):
    return server.metrics().get(
        ("whit_admission_rejections_total", (("reason", "queue_full"),)), 0)


def test_a_deadline_ends_a_stream_with_a_last_event_and_a_call_with_504(pair):
    gateway, servers = pair
    got = Reply(gateway, "/v1/generate_stream", body("Go on", **ENDLESS), ["grpc-timeout: 2S"])
    assert got.status == 200
    assert got.events[-1]["finish_reason"] == "FINISH_REASON_DEADLINE"
    assert "deadline" in got.events[-1]["error_message"]
    got = Reply(gateway, "/v1/generate", body("Go on", **ENDLESS), ["grpc-timeout: 500m"])
    assert got.status == 504
    assert got.events[0]["code"] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    for server in servers:
        server.wait_until_empty()


def test_a_killed_server_takes_only_its_own_streams_with_it(start_pair):
    gateway, (victim, survivor) = start_pair()
    stub = gateway.stub()
    calls = [stub.GenerateStream(request(f"Go on {i}", max_new_tokens=1500, ignore_eos=True))
             for i in range(6)]
    streams = [EventStream(gateway, body("Go on", max_new_tokens=1500, ignore_eos=True))
               for _ in range(4)]
    for stream in (*calls, *(iter(stream) for stream in streams)):
        next(stream)
    lost = victim.capacity().requests_running
    assert 0 < lost < 10
    load = Load(2, lambda: Stream(stub.GenerateStream(request("Next", max_new_tokens=3))))
    load.wait_for(4)
    victim.process.kill()
    load.wait_for(20)
    got = [Stream(call) for call in calls]
    cut_off = [one for one in got if one.code != grpc.StatusCode.OK]
    # Envoy resets such a stream, which gRPC's clients take as INTERNAL.
    assert all("RST_STREAM" in one.details for one in cut_off), cut_off
    assert all(one.last.usage.completion_tokens == 1500 for one in got if one not in cut_off)
    endings = [list(stream)[-1].get("finish_reason") for stream in streams]
    statuses = [stream.process.wait() for stream in streams]
    # 18: a partial file. HTTP clients see it too, for the answer has no end.
    assert list(zip(endings, statuses)) == [
        (None, 18) if status else ("FINISH_REASON_LENGTH", 0) for status in statuses]
    assert len(cut_off) + statuses.count(18) == lost
    # Whoever had no token yet went on to the other server, and so does who comes now.
    codes = [one.code for one in load.stop()]
    assert codes.count(grpc.StatusCode.OK) >= len(codes) - 2
    eventually(lambda: gateway.healthy() == 1, "the dead one is known")
    assert Reply(gateway, "/healthz").status == 200
    survivor.kill()
    eventually(lambda: gateway.healthy() == 0, "both dead ones are known")
    assert Reply(gateway, "/healthz").status == 503
    assert Reply(gateway, "/v1/model").status == 503
    assert Stream(stub.GenerateStream(request("Anyone?"))).code == grpc.StatusCode.UNAVAILABLE


def test_a_request_that_waited_at_a_killed_server_goes_to_another(start_pair):
    gateway, (victim, survivor) = start_pair("--max-running=1")
    stub = gateway.stub()
    with victim.client() as direct:
        running = direct.GenerateStream(request("Go on", **ENDLESS))
        next(running)
        calls = []

        def waits():
            calls.append(stub.GenerateStream(request("Me too", max_new_tokens=5, ignore_eos=True)))
            return victim.capacity().requests_waiting > 0

        eventually(waits, "one waits there")
        victim.process.kill()
        got = [Stream(call) for call in calls]
        assert Stream(running).code == grpc.StatusCode.UNAVAILABLE
    assert [(one.code, len(one.token_ids)) for one in got] == (
        [(grpc.StatusCode.OK, 5)] * len(calls))
    survivor.check_alive()


def test_a_server_that_goes_down_loses_no_stream(start_pair):
    gateway, (leaving, staying) = start_pair()
    stub = gateway.stub()
    long = [stub.GenerateStream(request(f"Go on {i}", max_new_tokens=800, ignore_eos=True))
            for i in range(6)]
    for call in long:
        next(call)
    assert leaving.capacity().requests_running > 0
    load = Load(3, lambda: Stream(stub.GenerateStream(
        request("Next", max_new_tokens=5, ignore_eos=True))))
    load.wait_for(6)
    leaving.signal(signal.SIGTERM)
    leaving.wait_for_event("draining")
    load.wait_for(20)
    assert leaving.wait() == 0
    load.wait_for(20)
    results = load.stop()
    assert {one.code for one in results} == {grpc.StatusCode.OK}
    assert all(len(one.token_ids) == 5 for one in results)
    assert [Stream(call).last.usage.completion_tokens for call in long] == [800] * 6
    staying.check_alive()


def test_more_goes_to_the_server_with_more_room(pair):
    gateway, servers = pair
    stub = gateway.stub()

    def shares():
        before = [completed(server) for server in servers]
        for _ in range(20):
            assert Stream(stub.GenerateStream(request("Quick", max_new_tokens=2))).last
        return [completed(server) - n for server, n in zip(servers, before)]

    for busy, idle in ((0, 1), (1, 0)):
        with servers[busy].client() as direct:
            calls = [direct.GenerateStream(request("Go on", **ENDLESS)) for _ in range(2)]
            for call in calls:
                next(call)
            # Half of its places are taken, of the other's none: Envoy is told within seconds.
            eventually(lambda: shares()[idle] >= 15, "the idle server gets most")
            for call in calls:
                call.cancel()
            servers[busy].wait_until_empty()


def completed(server):
    return sum(value for (name, _), value in server.metrics().items()
               if name == "whit_requests_total")


def test_tls_and_a_certificate_swap_under_load(pair):
    gateway, _ = pair
    authority = gateway.certificates / "tls.crt"
    url = f"https://localhost:{gateway.tls_address.split(':')[1]}/v1/model"
    assert Reply(gateway, url, options=["--cacert", authority]).status == 200
    assert Reply(gateway, url, options=["--cacert", authority, "--http1.1"]).status == 200
    assert Reply(gateway, url).exit_status == 60  # not trusted
    assert Reply(gateway, f"http://{gateway.tls_address}/v1/model").exit_status != 0

    def certificate():
        return ssl.get_server_certificate(tuple(gateway.tls_address.split(":")))

    first, trusted = certificate(), authority.read_bytes()
    with grpc.secure_channel(gateway.tls_address, grpc.ssl_channel_credentials(trusted)) as channel:
        stub = gateway.stub(channel)
        load = Load(2, lambda: Stream(stub.GenerateStream(request("Next", max_new_tokens=3))))
        load.wait_for(4)
        make_certificate(gateway.certificates, "renewed")
        eventually(lambda: certificate() != first, "the new certificate is served")
        load.wait_for(4)
        assert {one.code for one in load.stop()} == {grpc.StatusCode.OK}
    assert Reply(gateway, url, options=["--cacert", authority]).status == 200
