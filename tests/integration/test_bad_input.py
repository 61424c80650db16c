"""Whatever a client sends: a clear status that names the bad thing, and the server lives on."""

import math

import grpc
import pytest
from whit.v1 import text_generation_pb2 as pb
from whitd import TIMEOUT, Stream, request

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
SERVICE = "/whit.v1.TextGenerationService/"


def with_kv_cache(**options):
    made = request("hello")
    for name, value in options.items():
        setattr(made.kv_cache, name, value)
    return made


BAD_REQUESTS = {
    "no prompt": (pb.GenerateStreamRequest(), INVALID, "prompt is missing"),
    "empty text": (request(""), INVALID, "prompt is empty"),
    "no ids": (request([]), INVALID, "prompt is empty"),
    "no messages": (pb.GenerateStreamRequest(prompt=pb.Prompt(chat=pb.Chat())), INVALID,
                    "prompt is empty"),
    "id out of range": (request([5, 60_000]), INVALID, "prompt.token_ids.ids[1] is 60000"),
    "largest id": (request([2**32 - 1]), INVALID, "4294967295"),
    "prompt as long as the context": (request([5] * 2048), INVALID, "2048"),
    "prompt longer than the context": (request([5] * 5000), INVALID, "5000"),
    "text longer than the context": (request("x" * 1_000_000), INVALID, "1000000 bytes"),
    "text longer than the context, in tokens": (request("a b" * 2000), INVALID, "2048"),
    "unknown role": (request([("robot", "hi")]), INVALID, "robot"),
    "NaN temperature": (request("hi", temperature=math.nan), INVALID, "temperature is nan"),
    "negative temperature": (request("hi", temperature=-1), INVALID, "temperature is -1"),
    "infinite temperature": (request("hi", temperature=math.inf), INVALID, "temperature is inf"),
    "top_p 0": (request("hi", top_p=0), INVALID, "top_p is 0"),
    "top_p NaN": (request("hi", top_p=math.nan), INVALID, "top_p is nan"),
    "min_p 2": (request("hi", min_p=2), INVALID, "min_p is 2"),
    "repetition_penalty 0": (request("hi", repetition_penalty=0), INVALID, "repetition_penalty"),
    "presence_penalty": (request("hi", presence_penalty=1e9), INVALID, "presence_penalty"),
    "frequency_penalty": (request("hi", frequency_penalty=-1e9), INVALID, "frequency_penalty"),
    "no new tokens": (request("hi", max_new_tokens=0), INVALID, "max_new_tokens is 0"),
    "2^31 new tokens": (request("hi", max_new_tokens=2**31), INVALID, "max_new_tokens is 2147483648"),
    "2^32 - 1 new tokens": (request("hi", max_new_tokens=2**32 - 1), INVALID, "4294967295"),
    "empty stop string": (request("hi", stop=[""]), INVALID, "stop[0] is empty"),
    "stop string of 10 MB": (request("hi", stop=["x" * 10_000_000]), INVALID,
                             "stop[0] has 10000000 bytes"),
    "17 stop strings": (request("hi", stop=["x"] * 17), INVALID, "17"),
    "stop token out of range": (request("hi", stop_token_ids=[2**32 - 1]), INVALID, "4294967295"),
    "65 stop tokens": (request("hi", stop_token_ids=[5] * 65), INVALID, "65"),
    "logprobs 21": (request("hi", logprobs=21), INVALID, "logprobs is 21"),
    "logprobs 2^32 - 1": (request("hi", logprobs=2**32 - 1), INVALID, "4294967295"),
    "long request id": (request("hi", request_id="x" * 129), INVALID, "request_id"),
    "request id with a line break": (request("hi", request_id="a\nb"), INVALID, "request_id"),
    "absurdly long policy": (with_kv_cache(policy="x" * 1_000_000), INVALID, "kv_cache.policy"),
    "absurdly long role": (request([("x" * 1_000_000, "hi")]), INVALID, "prompt.chat"),
    "unknown policy": (with_kv_cache(policy="best"), INVALID, "best"),
    "policy without its file": (with_kv_cache(policy="learned"), PRECONDITION, "whit-calibrate"),
    "bits out of range": (with_kv_cache(policy="adaptive:99"), INVALID, "'99' is no number"),
    "unknown rung": (with_kv_cache(floor_rung="K9V9"), INVALID, "K9V9"),
    "floor of a policy that has one rung": (
        with_kv_cache(policy="static:K4V4", floor_rung="K2V2"), INVALID, "floor_rung is K2V2"),
    "floor below the operator's": (
        with_kv_cache(policy="adaptive", floor_rung="K2V2"), PRECONDITION, "no lower than K4V2"),
    "target bits of fp16": (with_kv_cache(target_bits=4), INVALID, "target_bits is 4, but policy"),
    "target bits 2": (with_kv_cache(policy="adaptive", target_bits=2), INVALID, "2.25 and 16"),
    "target bits NaN": (with_kv_cache(target_bits=math.nan), INVALID, "target_bits is nan"),
}


@pytest.mark.parametrize("made, code, message", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_named(server, made, code, message):
    with server.client() as stub:
        got = Stream(stub.GenerateStream(made, timeout=TIMEOUT))
        assert (got.code, got.pieces) == (code, [])
        assert message in got.details
        assert got.trailers["whit-reason"] == (
            {PRECONDITION: "configuration"}.get(code, "invalid"))
        assert "retry-after" not in got.trailers

        unary = pb.GenerateRequest()
        unary.ParseFromString(made.SerializeToString())
        with pytest.raises(grpc.RpcError) as error:
            stub.Generate(unary, timeout=TIMEOUT)
        assert (error.value.code(), error.value.details()) == (code, got.details)
    server.check_alive()


def send_bytes(server, method, data):
    """As a client would that does not check what it sends."""
    with grpc.insecure_channel(server.address) as channel:
        return Stream(channel.unary_stream(SERVICE + method)(data, timeout=TIMEOUT))


def string_field(number, value):
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


@pytest.mark.parametrize("method, data, message", [
    ("GenerateStream", string_field(1, string_field(1, b"ab\xff")),
     "prompt.text is not UTF-8 from byte 2 on"),
    ("Generate", string_field(1, string_field(1, b"\xed\xa0\x80")),  # a surrogate
     "prompt.text is not UTF-8 from byte 0 on"),
    ("GenerateStream", string_field(3, string_field(2, b"ok") + string_field(2, b"\xc0\x80")),
     "stopping.stop[1] is not UTF-8 from byte 0 on"),
    ("GenerateStream",
     string_field(1, string_field(3, string_field(1, string_field(2, b"hi \xf5")))),
     "prompt.chat.messages[0].content is not UTF-8 from byte 3 on"),
    ("Score", string_field(2, string_field(1, b"\x80")),
     "continuation.text is not UTF-8 from byte 0 on"),
    ("Tokenize", string_field(1, b"\xe2\x82"), "text is not UTF-8 from byte 0 on"),
    ("GenerateStream", b"\xff\xff\xff\xff", "4 bytes are no whit.v1.GenerateStreamRequest"),
    ("Detokenize", b"\x0a\x7f", "2 bytes are no whit.v1.DetokenizeRequest"),
])
def test_bytes_that_are_no_request_are_named(server, method, data, message):
    got = send_bytes(server, method, data)
    assert (got.code, got.pieces) == (INVALID, [])
    assert message in got.details
    server.check_alive()


def test_a_message_over_the_limit_is_refused(server):
    got = send_bytes(server, "Generate", b"x" * (17 << 20))
    assert got.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(16 << 20) in got.details
    server.check_alive()


@pytest.mark.parametrize("method, made, message", [
    ("Score", pb.ScoreRequest(), "continuation is missing"),
    ("Score", pb.ScoreRequest(continuation=pb.Prompt(text="")), "continuation is empty"),
    ("Score", pb.ScoreRequest(continuation=pb.Prompt(chat=pb.Chat())), "continuation.chat"),
    ("Score", pb.ScoreRequest(context=pb.Prompt(text="x " * 4000),
                              continuation=pb.Prompt(text="y")), "2048"),
    ("Score", pb.ScoreRequest(continuation=pb.Prompt(token_ids=pb.TokenIds(ids=[1, 99999]))),
     "continuation.token_ids.ids[1] is 99999"),
    ("Tokenize", pb.TokenizeRequest(), "content is missing"),
    ("Tokenize", pb.TokenizeRequest(chat=pb.Chat()), "messages"),
    ("Detokenize", pb.DetokenizeRequest(token_ids=[1, 99999]), "token_ids[1] is 99999"),
])
def test_other_methods_name_what_is_bad(server, method, made, message):
    with server.client() as stub, pytest.raises(grpc.RpcError) as error:
        getattr(stub, method)(made, timeout=TIMEOUT)
    assert error.value.code() == INVALID
    assert message in error.value.details()
    server.check_alive()


def test_a_request_larger_than_the_cache_names_the_cache(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=24M")
    with server.client() as stub:
        got = Stream(stub.GenerateStream(request("hi", max_new_tokens=20_000), timeout=TIMEOUT))
    assert (got.code, got.pieces) == (INVALID, [])
    assert got.trailers["whit-reason"] == "too_large"
    assert "KV cache" in got.details
    server.check_alive()


def test_logs_never_hold_prompts_or_completions(start, tiny_model):
    server = start(tiny_model, "--kv-cache-bytes=16M")
    with server.client() as stub:
        text = Stream(stub.GenerateStream(request("xyzzy-secret", max_new_tokens=30))).text
        Stream(stub.GenerateStream(request("xyzzy-secret " * 4000, max_new_tokens=30)))
        stub.Tokenize(pb.TokenizeRequest(text="xyzzy-secret"))
        Stream(stub.GenerateStream(request([("user", "xyzzy-secret")], stop=["xyzzy"] * 17)))
    assert server.stop() == 0
    log = "\n".join(str(line) for line in server.log)
    assert "xyzzy" not in log
    assert text[:10] not in log
