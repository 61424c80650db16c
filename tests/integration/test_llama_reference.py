"""The quickstart's model, served by whitd, against what llama.cpp makes of it (llama_reference.json)."""

import json
import math
import pathlib

import pytest
from whit.v1 import text_generation_pb2 as pb
from whitd import TIMEOUT, Stream, Whitd, request

REFERENCE = json.loads(pathlib.Path(__file__).with_name("llama_reference.json").read_text())

# Where llama.cpp's best token is ahead of its second by this much in logits, no rounding of either
# engine should change the order.
CLEAR_GAP = 0.3

each_prompt = pytest.mark.parametrize(
    "prompt", REFERENCE["prompts"], ids=lambda prompt: prompt["text"][:24])


@pytest.fixture(scope="module")
def stub(real_model):
    from conftest import BIN_DIR

    server = Whitd(BIN_DIR / "whitd", real_model, "--kv-cache-bytes=256M", "--kv-policy=fp16")
    with server.client() as stub:
        yield stub
    assert server.stop() == 0


def score(stub, context_ids, ids):
    ask = pb.ScoreRequest()
    ask.context.token_ids.ids.extend(context_ids)
    ask.continuation.token_ids.ids.extend(ids)
    scored = stub.Score(ask, timeout=TIMEOUT)
    assert scored.token_ids == ids
    return scored


@each_prompt
def test_tokenizes_alike(stub, prompt):
    answer = stub.Tokenize(pb.TokenizeRequest(text=prompt["text"], parse_special=True))
    assert answer.token_ids == prompt["prompt_ids"]


@each_prompt
def test_the_likeliest_tokens_are_the_same(stub, prompt):
    scored = score(stub, prompt["prompt_ids"], prompt["greedy_ids"])
    others = [
        (position, gap)
        for position, (gap, same) in enumerate(zip(prompt["gaps"], scored.is_greedy))
        if not same and gap > CLEAR_GAP
    ]
    assert others == []


@each_prompt
def test_greedy_text_is_the_same_until_a_close_call(stub, prompt):
    expected = prompt["greedy_ids"]
    got = Stream(stub.GenerateStream(
        request(prompt["prompt_ids"], max_new_tokens=len(expected), ignore_eos=True)))
    close = [position for position, gap in enumerate(prompt["gaps"]) if gap <= CLEAR_GAP]
    clear = close[0] if close else len(expected)
    assert len(got.token_ids) == len(expected)
    assert got.token_ids[:clear] == expected[:clear]


def test_the_perplexity_is_the_same(stub):
    total = expected = tokens = 0
    for text in REFERENCE["texts"]:
        total += score(stub, text["context_ids"], text["ids"]).total_logprob
        expected += sum(text["logprobs"])
        tokens += len(text["ids"])
    assert math.exp(-total / tokens) == pytest.approx(math.exp(-expected / tokens), rel=0.005)
