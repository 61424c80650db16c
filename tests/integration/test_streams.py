"""What a client gets from a server that has nothing else to do."""

import concurrent.futures
import math

import grpc
import pytest
from whit.v1 import text_generation_pb2 as pb
from whitd import TIMEOUT, Stream, request


@pytest.fixture
def stub(server):
    with server.client() as client:
        yield client
    server.wait_until_empty()


def stream(stub, *arguments, **options):
    return Stream(stub.GenerateStream(request(*arguments, **options), timeout=TIMEOUT))


def test_a_stream_ends_with_one_final_message(stub):
    got = stream(stub, "Once upon a time", max_new_tokens=20, request_id="my-id")
    assert got.code == grpc.StatusCode.OK
    last = got.last
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert last.request_id == "my-id"
    assert last.error_message == ""
    assert last.usage.completion_tokens == len(got.token_ids) == 20
    assert last.usage.prompt_tokens == len(
        stub.Tokenize(pb.TokenizeRequest(text="Once upon a time")).token_ids)
    assert last.timings.prefill_seconds > 0
    assert last.timings.decode_seconds > 0
    assert last.kv_cache.true_bytes > 0
    assert last.kv_cache.policy == "fp16"
    assert [rung.rung for rung in last.kv_cache.rungs] == ["FP16"]
    assert last.kv_cache.mean_bits >= 16
    assert got.text == stub.Detokenize(pb.DetokenizeRequest(token_ids=got.token_ids)).text


def test_pages_are_free_before_the_final_status(stub):
    for _ in range(20):
        assert stream(stub, "abc", max_new_tokens=5).code == grpc.StatusCode.OK
        now = stub.GetCapacity(pb.GetCapacityRequest())
        assert (now.kv_cache_used_bytes, now.kv_cache_reserved_bytes) == (0, 0)


def test_generate_says_the_same_as_the_stream(stub):
    streamed = stream(stub, "The same", max_new_tokens=30)
    reply = stub.Generate(request("The same", unary=True, max_new_tokens=30))
    assert list(reply.token_ids) == streamed.token_ids
    assert reply.text == streamed.text
    assert reply.finish_reason == pb.FINISH_REASON_LENGTH
    assert reply.usage == streamed.last.usage
    assert reply.request_id


def test_token_ids_are_taken_as_they_are(stub):
    ids = stub.Tokenize(pb.TokenizeRequest(text="by number")).token_ids
    assert stream(stub, list(ids), max_new_tokens=10).token_ids == stream(
        stub, "by number", max_new_tokens=10).token_ids


def test_chat_is_what_its_tokens_are(stub):
    messages = [("system", "Be brief."), ("user", "Hello")]
    chat = request(messages).prompt.chat
    ids = stub.Tokenize(pb.TokenizeRequest(chat=chat)).token_ids
    got = stream(stub, messages, max_new_tokens=10)
    assert got.last.usage.prompt_tokens == len(ids)
    assert got.token_ids == stream(stub, list(ids), max_new_tokens=10).token_ids


def test_a_seed_gives_the_same_tokens_again(stub):
    options = dict(max_new_tokens=40, temperature=1.5)
    first = stream(stub, "Dice", seed=7, **options).token_ids
    assert stream(stub, "Dice", seed=7, **options).token_ids == first
    assert stream(stub, "Dice", seed=8, **options).token_ids != first
    assert stream(stub, "Dice", **options).token_ids != stream(stub, "Dice", **options).token_ids


def test_a_stop_string_ends_the_text_before_it(stub):
    whole = stream(stub, "Until here", max_new_tokens=60).text
    stop = whole[20:24]
    got = stream(stub, "Until here", max_new_tokens=60, stop=["never comes", stop])
    assert got.last.finish_reason == pb.FINISH_REASON_STOP
    assert got.text == whole[: whole.index(stop)]


def test_a_stop_token_ends_the_text_before_it(stub):
    whole = stream(stub, "Until there", max_new_tokens=30)
    token = whole.token_ids[12]
    got = stream(stub, "Until there", max_new_tokens=30, stop_token_ids=[token])
    assert got.last.finish_reason == pb.FINISH_REASON_STOP
    assert got.last.usage.completion_tokens <= 13
    assert whole.text.startswith(got.text)
    assert len(got.text) < len(whole.text)


def test_logprobs_come_with_each_token(stub):
    got = stream(stub, "How likely", max_new_tokens=10, logprobs=3)
    logprobs = [entry for piece in got.pieces for entry in piece.logprobs]
    assert len(logprobs) == len(got.token_ids) == 10
    for token, entry in zip(got.token_ids, logprobs):
        assert len(entry.top) == 3
        assert entry.top[0].token_id == token  # greedy
        assert math.isclose(entry.top[0].logprob, entry.logprob, rel_tol=1e-5)
        assert 0 > entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob
    assert not any(piece.logprobs for piece in stream(stub, "x", max_new_tokens=3).pieces)


def test_score_agrees_with_generation(stub):
    got = stream(stub, "Score me", max_new_tokens=12, logprobs=0)
    generated = [entry.logprob for piece in got.pieces for entry in piece.logprobs]
    ask = pb.ScoreRequest()
    ask.context.text = "Score me"
    ask.continuation.token_ids.ids.extend(got.token_ids)
    reply = stub.Score(ask)
    assert list(reply.token_ids) == got.token_ids
    assert all(reply.is_greedy)
    assert reply.logprobs == pytest.approx(generated, abs=1e-3)
    assert reply.total_logprob == pytest.approx(sum(reply.logprobs), rel=1e-5)
    assert reply.usage.completion_tokens == 0


def test_score_without_context_leaves_out_the_first_token(stub):
    ask = pb.ScoreRequest()
    ask.continuation.text = "No context"
    ids = list(stub.Tokenize(pb.TokenizeRequest(text="No context")).token_ids)
    reply = stub.Score(ask)
    assert list(reply.token_ids) == ids[1:]
    ask.continuation.token_ids.ids.append(5)
    with pytest.raises(grpc.RpcError) as error:
        stub.Score(ask)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "nothing to score" in error.value.details()


def test_tokenize_and_detokenize_are_inverse(stub):
    for text in ("plain", "grüße 你好 🙂\r\n\t", "<|im_start|>user", "x" * 100_000):
        ids = stub.Tokenize(pb.TokenizeRequest(text=text)).token_ids
        assert stub.Detokenize(pb.DetokenizeRequest(token_ids=ids)).text == text
    special = stub.Tokenize(pb.TokenizeRequest(text="<|im_start|>", parse_special=True)).token_ids
    assert len(special) == 1
    assert stub.Detokenize(pb.DetokenizeRequest(token_ids=special)).text == "<|im_start|>"
    assert len(stub.Tokenize(pb.TokenizeRequest(text="<|im_start|>")).token_ids) > 1
    assert stub.Tokenize(pb.TokenizeRequest(text="")).token_ids == []


def test_get_model_describes_the_model(stub):
    model = stub.GetModel(pb.GetModelRequest())
    assert model.architecture == "llama"
    assert model.context_length == 2048
    assert model.vocabulary_size > 256
    assert model.num_heads % model.num_kv_heads == 0
    assert model.parameters > 0
    assert model.file_bytes > 0
    assert model.chat_format == "chatml"
    assert model.kv_policy == "fp16"
    assert list(model.end_of_generation_token_ids)


def test_get_capacity_describes_an_empty_server(stub):
    now = stub.GetCapacity(pb.GetCapacityRequest())
    assert 0 < now.kv_cache_capacity_bytes <= 64 << 20
    assert now.headroom_tokens_floor > 0
    assert (now.requests_running, now.requests_waiting, now.waiting_prompt_tokens) == (0, 0, 0)
    assert now.max_running_requests == 64
    assert now.max_waiting_requests == 256
    assert not now.draining


def test_sixty_four_streams_at_once_do_not_change_each_other(server, stub):
    prompts = [f"Stream number {i}" for i in range(64)]

    def run(prompt):
        with server.client() as own:
            return stream(own, prompt, max_new_tokens=50)

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(run, prompts))
    assert all(got.code == grpc.StatusCode.OK for got in together)
    assert all(got.last.usage.completion_tokens == 50 for got in together)
    for prompt, got in list(zip(prompts, together))[::8]:
        assert stream(stub, prompt, max_new_tokens=50).token_ids == got.token_ids


def test_a_default_of_max_new_tokens_fits_the_context(stub):
    got = stream(stub, [7] * 2000, ignore_eos=True)
    assert got.code == grpc.StatusCode.OK, got.details
    assert got.last.usage.completion_tokens == 48
