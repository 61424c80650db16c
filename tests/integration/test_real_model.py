"""On a real model ($WHIT_MODEL): what it says makes sense."""

import pytest
from whitd import Stream, request


@pytest.fixture(scope="module")
def server(real_model):
    from conftest import BIN_DIR
    from whitd import Whitd

    shared = Whitd(BIN_DIR / "whitd", real_model, "--kv-cache-bytes=512M")
    yield shared
    assert shared.stop() == 0


def test_it_continues_a_text(server):
    with server.client() as stub:
        got = Stream(stub.GenerateStream(request("The capital of France is", max_new_tokens=8)))
    assert "Paris" in got.text


def test_it_answers_a_question_and_ends_by_itself(server):
    with server.client() as stub:
        got = Stream(stub.GenerateStream(
            request([("user", "What is the capital of France? Answer in one word.")],
                    max_new_tokens=64)))
    assert "Paris" in got.text
    assert got.last.finish_reason == 1  # STOP


def test_it_knows_what_is_likelier(server):
    from whit.v1 import text_generation_pb2 as pb

    def score(continuation):
        ask = pb.ScoreRequest()
        ask.context.text = "Two plus two is"
        ask.continuation.text = continuation
        with server.client() as stub:
            return stub.Score(ask).total_logprob

    assert score(" four") > score(" blue")


def test_the_quickstart_model_has_its_policy_file(server):
    assert server.wait_for_event("policy file")["path"].endswith(".whitpolicy")
