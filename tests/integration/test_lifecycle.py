"""Requests that end early, servers that are full, and servers that go down."""

import concurrent.futures
import itertools
import json
import random
import signal
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from whit.v1 import text_generation_pb2 as pb
from whitd import TIMEOUT, Stream, eventually, request

LONG = dict(max_new_tokens=20_000, ignore_eos=True)


@pytest.fixture
def slow(start, slow_model):
    """Its requests take many seconds."""
    return start(slow_model, "--kv-cache-bytes=1G")


def running(server):
    return server.capacity().requests_running


def test_cancel_in_the_middle_of_a_stream(slow):
    with slow.client() as stub:
        call = stub.GenerateStream(request("Go on", **LONG))
        for _ in range(3):
            next(call)
        assert slow.capacity().kv_cache_used_bytes > 0
        call.cancel()
        slow.wait_until_empty()
    ended = slow.wait_for_event("request", code="CANCELLED")
    assert ended["reason"] == "cancelled"
    assert 0 < ended["completion_tokens"] < 20_000


def test_cancel_in_the_middle_of_a_long_prompt(slow):
    with slow.client() as stub:
        call = stub.GenerateStream(request([50] * 30_000, max_new_tokens=10))
        eventually(lambda: slow.capacity().kv_cache_used_bytes > 0, "the prompt is being computed")
        call.cancel()
        slow.wait_until_empty()
    ended = slow.wait_for_event("request", code="CANCELLED")
    assert ended["completion_tokens"] == 0


def test_a_client_that_vanishes_is_noticed(slow):
    with slow.client() as stub:
        next(stub.GenerateStream(request("Go on", **LONG)))
    slow.wait_until_empty()
    slow.wait_for_event("request", code="CANCELLED")


def test_a_deadline_ends_a_stream(slow):
    with slow.client() as stub:
        got = Stream(stub.GenerateStream(request("Go on", **LONG), timeout=2))
    assert got.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < len(got.token_ids) < 20_000
    # Told before the status, for those who do not see it.
    assert got.last.finish_reason == pb.FINISH_REASON_DEADLINE
    slow.wait_until_empty()
    assert slow.wait_for_event("request", code="DEADLINE_EXCEEDED")["reason"] == "deadline"


def test_a_deadline_is_heeded_in_the_queue(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G", "--max-running=1")
    with server.client() as stub:
        first = stub.GenerateStream(request("Go on", **LONG))
        next(first)
        got = Stream(stub.GenerateStream(request("Me too", **LONG), timeout=1))
        assert got.token_ids == []
        # Once the pace of the first is known, it is plain at once that the second would wait longer.
        if got.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            assert got.trailers["whit-reason"] == "deadline"
        else:
            assert got.code == grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: server.capacity().requests_waiting == 0, "the queue is empty")
        assert running(server) == 1
        first.cancel()


def test_a_slow_client_holds_up_nobody(slow):
    with slow.client(("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)) as stub:
        # Nothing is read, so the window of this stream fills up and stays full.
        lazy = stub.GenerateStream(request("Go on", max_new_tokens=1500, ignore_eos=True,
                                           logprobs=20, request_id="lazy"))
        with slow.client() as other:
            got = Stream(other.GenerateStream(request("Quick", max_new_tokens=20)))
            assert got.last.usage.completion_tokens == 20
        # The engine is done with it, its pages are free, while its client has not read a word.
        slow.wait_until_empty()
        late = Stream(lazy)
        assert late.last.usage.completion_tokens == len(late.token_ids) == 1500
        assert sum(len(piece.logprobs) for piece in late.pieces) == 1500
        # What waited was put together.
        assert max(len(piece.token_ids) for piece in late.pieces) > 1


def test_a_full_queue_refuses_and_says_when_to_come_back(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G", "--max-running=1", "--max-queue-requests=1")
    with server.client() as stub:
        first = stub.GenerateStream(request("Go on", **LONG))
        next(first)
        next(first)  # by now the rate counts a token
        second = stub.GenerateStream(request("Me too", **LONG))
        eventually(lambda: server.capacity().requests_waiting == 1, "the second waits")
        got = Stream(stub.GenerateStream(request("And me", **LONG)))
        assert (got.code, got.pieces) == (grpc.StatusCode.RESOURCE_EXHAUSTED, [])
        assert got.trailers["whit-reason"] == "queue_full"
        # The first has thousands of tokens before it: far more than the default of a second.
        assert int(got.trailers["grpc-retry-pushback-ms"]) > 2_000
        assert int(got.trailers["retry-after"]) > 2
        assert server.metric("whit_admission_rejections_total", reason="queue_full") == 1
        assert server.metric("whit_requests_waiting") == 1
        first.cancel()
        # The one that waited gets its turn.
        next(second)
        second.cancel()
    server.wait_until_empty()


RETRY_POLICY = json.dumps({"methodConfig": [{
    "name": [{"service": "whit.v1.TextGenerationService"}],
    "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s",
                    "backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]},
}]})


def test_a_client_with_a_retry_policy_gets_through(full_server):
    """test_cli.py has the same with C++."""
    server, make_room = full_server
    with server.client(("grpc.service_config", RETRY_POLICY)) as stub:
        call = stub.GenerateStream(request("Me too", max_new_tokens=5, ignore_eos=True))
        server.wait_for_event("request", reason="queue_full")
        make_room()
        got = Stream(call)
    assert (got.code, len(got.token_ids)) == (grpc.StatusCode.OK, 5)
    # It stayed away as long as it was told: by its own backoff it would have given up at once.
    assert server.metric("whit_admission_rejections_total", reason="queue_full") <= 4


def test_a_queue_full_of_prompt_tokens_refuses(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G", "--max-running=1",
                   "--max-queue-prompt-tokens=100")
    with server.client() as stub:
        first = stub.GenerateStream(request("Go on", **LONG))
        next(first)
        got = Stream(stub.GenerateStream(request([50] * 101)))
        assert got.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert got.trailers["whit-reason"] == "queue_prompt_tokens"
        assert "100" in got.details
        first.cancel()


def test_memory_that_is_promised_is_not_promised_again(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=100M", "--kv-policy=fp16")
    half = dict(LONG, max_new_tokens=8_000)
    with server.client() as stub:
        first = stub.GenerateStream(request("Go on", **half))
        next(first)
        second = stub.GenerateStream(request("Me too", **half))
        eventually(lambda: server.capacity().requests_waiting == 1, "the second waits for memory")
        now = server.capacity()
        assert now.kv_cache_reserved_bytes <= now.kv_cache_capacity_bytes
        first.cancel()
        next(second)
        second.cancel()
    server.wait_until_empty()


def test_a_thousand_streams_cancelled_at_random_leave_nothing_behind(start, tiny_model):
    server = start(tiny_model, "--kv-cache-bytes=32M", "--max-queue-requests=2000")
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 250) for _ in range(rng.choice([1, 10, 100, 1000]))]
               for _ in range(50)]

    def storm(streams):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with server.client(*options) as stub:

            def one(_):
                call = stub.GenerateStream(request(rng.choice(prompts), max_new_tokens=400,
                                                   ignore_eos=True))
                # Where clients are slow, a message carries many tokens, and the stream may end first.
                for _ in itertools.islice(call, rng.choice([0, 0, 1, 3, 10])):
                    pass
                call.cancel()

            with concurrent.futures.ThreadPoolExecutor(32) as pool:
                list(pool.map(one, range(streams)))
        server.wait_until_empty()

    storm(200)
    threads, memory = server.info.num_threads(), server.info.memory_info().rss
    storm(1000)
    assert server.info.num_threads() <= threads
    assert server.info.memory_info().rss - memory < 16 << 20
    server.check_alive()
    with server.client() as stub:
        now = stub.GetCapacity(pb.GetCapacityRequest())
        assert (now.kv_cache_used_bytes, now.kv_cache_reserved_bytes) == (0, 0)


def test_an_idle_server_uses_no_cpu(start, tiny_model):
    server = start(tiny_model)
    server.check_alive()
    server.wait_until_empty()
    before = sum(server.info.cpu_times()[:2])
    time.sleep(2)
    assert sum(server.info.cpu_times()[:2]) - before <= 0.02


def test_drain_lets_running_requests_finish(slow):
    with slow.client() as stub, grpc.insecure_channel(slow.address) as watching:
        watch = health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        call = stub.GenerateStream(request("Go on", max_new_tokens=600, ignore_eos=True))
        next(call)
        slow.signal(signal.SIGTERM)
        slow.wait_for_event("draining")
        with slow.client() as other:
            assert other.GetCapacity(pb.GetCapacityRequest()).draining
            refused = Stream(other.GenerateStream(request("Too late")))
        assert (refused.code, refused.pieces) == (grpc.StatusCode.UNAVAILABLE, [])
        assert refused.trailers["whit-reason"] == "draining"
        with grpc.insecure_channel(slow.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "whit.v1.TextGenerationService",
                            "vllm.grpc.engine.VllmEngine"):
                assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == (
                    health_pb2.HealthCheckResponse.NOT_SERVING)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        got = Stream(call)
        assert got.code == grpc.StatusCode.OK
        assert got.last.usage.completion_tokens == 600
    assert slow.wait() == 0
    assert slow.log[-2]["event"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cancels_at_once(slow, number):
    with slow.client() as stub:
        call = stub.GenerateStream(request("Go on", **LONG))
        next(call)
        slow.signal(number)
        slow.wait_for_event("draining")
        slow.signal(number)
        got = Stream(call)
    assert got.code == grpc.StatusCode.UNAVAILABLE
    assert "went down" in got.details
    # Told before the status, for those who do not see it.
    assert got.last.finish_reason == pb.FINISH_REASON_CANCELLED
    assert "went down" in got.last.error_message
    assert slow.wait() == 0


def test_the_drain_timeout_cancels_what_is_left(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G", "--drain-timeout=500ms")
    with server.client() as stub:
        call = stub.GenerateStream(request("Go on", **LONG))
        next(call)
        server.signal()
        got = Stream(call)
    assert got.code == grpc.StatusCode.UNAVAILABLE
    assert got.last.finish_reason == pb.FINISH_REASON_CANCELLED
    assert server.wait() == 0


def test_an_idle_server_stops_at_once(start, tiny_model):
    server = start(tiny_model)
    channel = grpc.insecure_channel(server.address)
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    # A health watch that stays open does not keep it up.
    assert server.stop() == 0


def test_long_texts_do_not_hold_up_short_ones(start, tiny_model):
    server = start(tiny_model)
    long_text = "".join(chr(0x4E00 + i % 5000) for i in range(200_000))
    stopping = threading.Event()

    def tokenize_on_and_on():
        with server.client(("grpc.max_receive_message_length", -1)) as stub:
            while not stopping.is_set():
                assert len(stub.Tokenize(pb.TokenizeRequest(text=long_text)).token_ids) > 10_000

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(tokenize_on_and_on) for _ in range(4)]
        with server.client() as stub:
            for _ in range(20):
                assert Stream(stub.GenerateStream(request("Quick", max_new_tokens=3))).last
        stopping.set()
        for done in busy:
            done.result()
