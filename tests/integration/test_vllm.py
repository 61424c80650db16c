"""vllm.grpc.engine.VllmEngine, as the gateway smg speaks it; test_smg.py has the gateway itself."""

import contextlib
import hashlib
import importlib.util
import io
import json
import pathlib
import signal
import zipfile

import grpc
import pytest
import tokenizers
from conftest import make_model
from secured import TOKENS, bearer
from vllm.grpc.engine import vllm_engine_pb2 as vllm
from vllm.grpc.engine import vllm_engine_pb2_grpc as vllm_grpc
from whit.v1 import text_generation_pb2 as pb
from whitd import TIMEOUT, Stream, eventually, request

LONG = dict(max_tokens=20_000, ignore_eos=True)
PROMPT = [50, 60, 70, 80]


@contextlib.contextmanager
def engine(server):
    with grpc.insecure_channel(server.address) as channel:
        yield vllm_grpc.VllmEngineStub(channel)


@pytest.fixture
def stub(server):
    with engine(server) as client:
        yield client
    server.wait_until_empty()


@pytest.fixture
def whit_stub(server):
    with server.client() as client:
        yield client


def generate_request(prompt=PROMPT, stream=True, request_id="", **sampling_params):
    made = vllm.GenerateRequest(request_id=request_id, stream=stream)
    if isinstance(prompt, str):
        made.text = prompt
    else:
        made.tokenized.input_ids.extend(prompt)
    made.sampling_params.CopyFrom(vllm.SamplingParams(**sampling_params))
    return made


class Answer:
    """All of a call that ended: the chunks and the one `complete` of each generation, its status."""

    def __init__(self, call):
        self.chunks, self.completes = {}, {}
        self.code, self.details = grpc.StatusCode.OK, ""
        try:
            for message in call:
                if message.HasField("complete"):
                    complete = message.complete
                    assert complete.index not in self.completes
                    self.completes[complete.index] = complete
                else:
                    assert message.chunk.index not in self.completes, "a chunk after the end"
                    self.chunks.setdefault(message.chunk.index, []).append(message.chunk)
        except grpc.RpcError as error:
            self.code, self.details = error.code(), error.details()
        self.trailers = dict(call.trailing_metadata() or ())

    def token_ids(self, index=0):
        return [token for chunk in self.chunks[index] for token in chunk.token_ids]


def generate(stub, *arguments, **options):
    return Answer(stub.Generate(generate_request(*arguments, **options), timeout=TIMEOUT))


def whit_tokens(whit_stub, prompt=PROMPT, **options):
    return Stream(whit_stub.GenerateStream(request(prompt, **options))).token_ids


def test_a_stream_says_what_our_own_service_says(stub, whit_stub):
    got = generate(stub, max_tokens=20)
    assert got.code == grpc.StatusCode.OK
    assert got.token_ids() == whit_tokens(whit_stub, max_new_tokens=20)
    complete = got.completes[0]
    assert list(complete.output_ids) == got.token_ids()
    assert complete.finish_reason == "length"
    assert (complete.prompt_tokens, complete.completion_tokens) == (4, 20)
    assert sum(chunk.completion_tokens for chunk in got.chunks[0]) == 20
    assert {chunk.prompt_tokens for chunk in got.chunks[0]} == {4}


def test_without_stream_there_is_only_the_end(stub, whit_stub):
    got = generate(stub, stream=False, max_tokens=20, logprobs=1)
    assert got.chunks == {}
    assert list(got.completes[0].output_ids) == whit_tokens(whit_stub, max_new_tokens=20)
    assert len(got.completes[0].output_logprobs.token_logprobs) == 20


def test_text_is_taken_too(stub, whit_stub):
    got = generate(stub, "Once upon a time", max_tokens=10)
    assert got.token_ids() == whit_tokens(whit_stub, "Once upon a time", max_new_tokens=10)


def test_several_generations_come_by_index(stub, whit_stub):
    got = generate(stub, n=3, max_tokens=20, temperature=1, seed=5)
    assert sorted(got.chunks) == sorted(got.completes) == [0, 1, 2]
    for i in range(3):
        expected = whit_tokens(whit_stub, max_new_tokens=20, temperature=1, seed=5 + i)
        assert got.token_ids(i) == list(got.completes[i].output_ids) == expected
    assert len({tuple(got.token_ids(i)) for i in range(3)}) == 3


def test_without_stream_several_generations_come_in_order(stub):
    # They end in any order.
    expected = generate(stub, n=4, max_tokens=200, temperature=1, seed=5)
    stop = expected.token_ids(0)[-20:]
    got = generate(stub, stream=False, n=4, max_tokens=200, temperature=1, seed=5,
                   stop_token_ids=stop)
    assert list(got.completes) == [0, 1, 2, 3]
    assert len({complete.completion_tokens for complete in got.completes.values()}) > 1


def test_sampling_parameters_arrive(stub, whit_stub):
    ours = dict(temperature=1.5, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.3,
                presence_penalty=0.5, frequency_penalty=0.5, seed=1)
    assert generate(stub, max_tokens=30, **ours).token_ids() == whit_tokens(
        whit_stub, max_new_tokens=30, **ours)
    # A seed of theirs may be negative.
    assert generate(stub, max_tokens=5, temperature=1, seed=-1).token_ids() == whit_tokens(
        whit_stub, max_new_tokens=5, temperature=1, seed=2**32 - 1)


def test_zero_is_unset(stub, whit_stub):
    zeros = dict(temperature=0, top_k=0, top_p=0, min_p=0, repetition_penalty=0, n=0)
    got = generate(stub, **zeros)
    assert got.token_ids() == whit_tokens(whit_stub)
    assert got.completes[0].completion_tokens == 256


def test_stop_strings(stub, whit_stub):
    text = Stream(whit_stub.GenerateStream(request(PROMPT, max_new_tokens=40))).text
    stop = text[10:13]
    got = generate(stub, max_tokens=40, stop=[stop])
    expected = Stream(whit_stub.GenerateStream(request(PROMPT, max_new_tokens=40, stop=[stop])))
    assert got.completes[0].finish_reason == "stop"
    assert got.token_ids() == expected.token_ids
    # The gateway cuts it from the text that it makes itself.
    made = whit_stub.Detokenize(pb.DetokenizeRequest(token_ids=got.token_ids())).text
    assert made.split(stop)[0] == expected.text


def test_stop_tokens(stub):
    stop = generate(stub, max_tokens=20).token_ids()[7]
    got = generate(stub, max_tokens=20, stop_token_ids=[stop])
    assert got.completes[0].finish_reason == "stop"
    assert got.completes[0].matched_token_id == got.token_ids()[-1] == stop
    assert stop not in got.token_ids()[:-1]


def test_logprobs(stub, whit_stub):
    got = generate(stub, max_tokens=10, logprobs=3)
    expected = Stream(whit_stub.GenerateStream(request(PROMPT, max_new_tokens=10, logprobs=3)))
    ours = [token for piece in expected.pieces for token in piece.logprobs]
    theirs = [(logprob, list(top.token_ids), list(top.values)) for chunk in got.chunks[0]
              for logprob, top in zip(chunk.output_logprobs.token_logprobs,
                                      chunk.output_logprobs.top_logprobs)]
    assert theirs == [(token.logprob, [top.token_id for top in token.top],
                       [top.logprob for top in token.top]) for token in ours]
    assert len(theirs) == 10
    none = generate(stub, max_tokens=10, logprobs=0).chunks[0]
    assert sum(len(chunk.output_logprobs.token_logprobs) for chunk in none) == 10
    assert not any(chunk.output_logprobs.top_logprobs for chunk in none)


@pytest.mark.parametrize("field, value", [
    ("json_schema", '{"type": "object"}'), ("regex", "a*"), ("grammar", 'root ::= "a"'),
    ("structural_tag", "{}"), ("json_object", True),
    ("choice", vllm.ChoiceConstraint(choices=["a"])), ("prompt_logprobs", 1), ("min_tokens", 2),
    ("logit_bias", {5: 1.0}), ("truncate_prompt_tokens", 3), ("logprobs", -1), ("n", 10_000),
])
def test_what_is_not_supported_is_refused_by_name(stub, field, value):
    got = generate(stub, max_tokens=5, **{field: value})
    assert got.code == grpc.StatusCode.INVALID_ARGUMENT
    assert f"sampling_params.{field} " in got.details
    assert got.trailers["whit-reason"] == "invalid"


def test_media_are_refused(stub):
    for field in ("mm_inputs", "media_refs", "kv_transfer_params"):
        made = generate_request(max_tokens=5)
        getattr(made, field).SetInParent()
        got = Answer(stub.Generate(made))
        assert got.code == grpc.StatusCode.INVALID_ARGUMENT
        assert got.details.startswith(field)


@pytest.mark.parametrize("prompt, options, complaint", [
    ([], {}, "prompt is empty"), ([5, 100_000], {}, "100000"), ([5], {"temperature": -1}, "-1"),
    ([5], {"max_tokens": 0}, "max_new_tokens is 0"), ([5] * 2048, {}, "2048"),
    ([5], {"logprobs": 21}, "21"), ([5], {"stop": [""]}, "stop"),
])
def test_bad_requests_name_what_is_wrong(stub, prompt, options, complaint):
    got = generate(stub, prompt, **options)
    assert got.code == grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in got.details
    assert got.chunks == got.completes == {}


def test_bytes_that_are_no_request(server):
    with grpc.insecure_channel(server.address) as channel:
        for method in ("Generate", "Abort", "GetLoads"):
            call = channel.unary_stream(f"/vllm.grpc.engine.VllmEngine/{method}")(b"\xff\xff\xff")
            with pytest.raises(grpc.RpcError) as error:
                list(call)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_other_engines_and_methods_are_unimplemented(server):
    """The gateway finds out by asking for all that it knows."""
    with grpc.insecure_channel(server.address) as channel:
        for method in ("sglang.grpc.scheduler.SglangScheduler/HealthCheck",
                       "vllm.grpc.engine.VllmEngine/SubscribeKvEvents"):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(f"/{method}")(b"")
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_model_and_the_server_are_described(stub, whit_stub, server):
    model = whit_stub.GetModel(pb.GetModelRequest())
    info = stub.GetModelInfo(vllm.GetModelInfoRequest())
    assert info.served_model_name == info.model_path == model.name == "Tiny"
    assert info.is_generation
    assert info.max_context_length == model.context_length
    assert info.vocab_size == model.vocabulary_size
    assert list(info.eos_token_ids) == list(model.end_of_generation_token_ids)
    described = stub.GetServerInfo(vllm.GetServerInfoRequest())
    assert described.max_num_seqs == server.capacity().max_running_requests
    assert described.block_size == 16
    assert described.kv_cache_dtype == "fp16"
    assert described.uptime_seconds > 0


@pytest.fixture
def slow(start, slow_model):
    """One request at a time that takes many seconds, and one that waits."""
    return start(slow_model, "--kv-cache-bytes=1G", "--max-running=1", "--max-queue-requests=1")


def test_loads_are_the_snapshot(slow):
    with engine(slow) as stub:
        assert stub.HealthCheck(vllm.HealthCheckRequest()).healthy
        running = stub.Generate(generate_request(**LONG))
        next(running)
        waiting = stub.Generate(generate_request([50] * 300, **LONG))
        eventually(lambda: slow.capacity().requests_waiting == 1, "the second waits")
        eventually(lambda: slow.capacity().kv_cache_used_bytes, "a step is done")
        answer = stub.GetLoads(vllm.GetLoadsRequest())
        (load,) = answer.loads
        assert answer.dp_rank_count == 1
        assert (load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs) == (1, 1, 2)
        assert load.num_waiting_uncached_tokens == 300
        assert load.max_running_requests == 1
        assert load.utilization == 2
        assert 0 < load.token_usage < 1
        assert 0 < load.num_used_tokens < load.max_total_num_tokens
        eventually(lambda: stub.GetLoads(vllm.GetLoadsRequest()).loads[0].gen_throughput > 0,
                   "the rate counts a token")
        running.cancel()
        waiting.cancel()
        slow.wait_until_empty()
        (load,) = stub.GetLoads(vllm.GetLoadsRequest()).loads
        assert (load.num_total_reqs, load.token_usage, load.utilization) == (0, 0, 0)


def test_a_cancelled_call_ends_its_generations(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G")
    with engine(server) as stub:
        call = stub.Generate(generate_request(n=3, **LONG))
        next(call)
        assert server.capacity().requests_running == 3
        call.cancel()
        server.wait_until_empty()
    assert server.wait_for_event("request", code="CANCELLED")["method"] == "VllmEngine.Generate"


def test_abort_ends_a_generation_by_itself(start, slow_model):
    """After the first token the gateway aborts and leaves the stream open."""
    server = start(slow_model, "--kv-cache-bytes=1G")
    with engine(server) as stub:
        first = stub.Generate(generate_request(request_id="first", n=2, **LONG))
        second = stub.Generate(generate_request(request_id="second", **LONG))
        next(first)
        next(second)
        assert server.capacity().requests_running == 3
        stub.Abort(vllm.AbortRequest(request_ids=["first", "unknown"]))
        got = Answer(first)
        assert (got.code, got.completes) == (grpc.StatusCode.CANCELLED, {})
        assert "aborted" in got.details
        assert server.capacity().requests_running == 1
        next(second)
        second.cancel()
        server.wait_until_empty()


def test_a_client_aborts_its_own_calls_alone(start, slow_model, files):
    server = start(slow_model, "--kv-cache-bytes=1G", f"--auth-tokens-file={files.tokens}")
    mobile, batch = (bearer(TOKENS[name]) for name in ("mobile", "batch"))
    with engine(server) as stub:
        call = stub.Generate(generate_request(request_id="mine", **LONG), metadata=mobile)
        next(call)
        stub.Abort(vllm.AbortRequest(request_ids=["mine"]), metadata=batch)
        server.wait_for_event("request", method="VllmEngine.Abort", client="batch")
        next(call)
        stub.Abort(vllm.AbortRequest(request_ids=["mine"]), metadata=mobile)
        assert Answer(call).code == grpc.StatusCode.CANCELLED


def test_a_full_server_turns_away(full_server):
    server, make_room = full_server
    with engine(server) as stub:
        got = generate(stub, max_tokens=5)
        assert (got.code, got.chunks, got.completes) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED, {}, {})
        assert got.trailers["whit-reason"] == "queue_full"
        assert int(got.trailers["grpc-retry-pushback-ms"]) > 0
        assert server.metric("whit_admission_rejections_total", reason="queue_full") == 1
        make_room()
        server.wait_until_empty()
        assert generate(stub, max_tokens=5).code == grpc.StatusCode.OK


def test_several_generations_are_admitted_together_or_not_at_all(slow):
    with engine(slow) as stub:
        running = stub.Generate(generate_request(**LONG))
        next(running)
        got = Answer(stub.Generate(generate_request(n=2, **LONG)))
        assert (got.code, got.completes) == (grpc.StatusCode.RESOURCE_EXHAUSTED, {})
        # A call is turned away once, however many of its generations are.
        assert slow.metric("whit_admission_rejections_total", reason="queue_full") == 1
        eventually(lambda: slow.capacity().requests_waiting == 0, "the first of them has gone")
        assert slow.capacity().requests_running == 1
        running.cancel()
        slow.wait_until_empty()


def test_a_draining_server_says_so_and_finishes_what_it_has(slow):
    with engine(slow) as stub:
        call = stub.Generate(generate_request(max_tokens=300, ignore_eos=True))
        next(call)
        slow.signal(signal.SIGTERM)
        slow.wait_for_event("draining")
        health = stub.HealthCheck(vllm.HealthCheckRequest())
        assert not health.healthy
        assert "draining" in health.message
        refused = generate(stub, max_tokens=5)
        assert (refused.code, refused.chunks) == (grpc.StatusCode.UNAVAILABLE, {})
        assert refused.trailers["whit-reason"] == "draining"
        got = Answer(call)
        assert got.code == grpc.StatusCode.OK
        assert got.completes[0].completion_tokens == 300
    assert slow.wait() == 0


def fetch_tokenizer(server):
    with engine(server) as stub:
        chunks = list(stub.GetTokenizer(vllm.GetTokenizerRequest()))
    data = b"".join(chunk.data for chunk in chunks)
    assert [chunk.sha256 for chunk in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
    assert max(len(chunk.data) for chunk in chunks) <= 64 << 10
    return data


def compare_tokenizer():
    """tests/eval/compare_tokenizer.py"""
    path = pathlib.Path(__file__).resolve().parents[1] / "eval/compare_tokenizer.py"
    spec = importlib.util.spec_from_file_location("compare_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tokenizer_is_a_zip_that_is_always_the_same(server, start, tiny_model):
    data = fetch_tokenizer(server)
    assert data == fetch_tokenizer(server) == fetch_tokenizer(start(tiny_model))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
@pytest.mark.parametrize("bos", [[], [1]], ids=["", "bos"])
def test_others_make_the_same_tokens(start, tmp_path, pre, bos):
    server = start(make_model(tmp_path / "tiny.gguf", f"--pre={pre}", *["--add-bos"] * len(bos)))
    with zipfile.ZipFile(io.BytesIO(fetch_tokenizer(server))) as archive:
        reference = tokenizers.Tokenizer.from_str(archive.read("tokenizer.json").decode())
        assert json.loads(archive.read("tokenizer_config.json"))["add_bos_token"] == bool(bos)
    compare = compare_tokenizer()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    texts = compare.HAND_PICKED + list(compare.random_mixtures(special, 50))
    with server.client() as stub:
        for text in texts:
            for parse_special in (True, False):
                reference.encode_special_tokens = not parse_special
                ids = stub.Tokenize(
                    pb.TokenizeRequest(text=text, parse_special=parse_special)).token_ids
                assert reference.encode(text).ids == bos + list(ids), text
                assert reference.encode(text, add_special_tokens=False).ids == ids, text
            assert reference.decode(list(ids), skip_special_tokens=False) == stub.Detokenize(
                pb.DetokenizeRequest(token_ids=ids)).text
