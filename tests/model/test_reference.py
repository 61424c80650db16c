"""The quickstart's model, served by whitd, against what llama.cpp makes of it (reference.json)."""

import json
import math
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BIN = pathlib.Path(os.environ.get("WHIT_BIN", ROOT / "build/release/bin"))
REFERENCE = json.loads(pathlib.Path(__file__).with_name("reference.json").read_text())

# Where llama.cpp's best token is ahead of its second by this much in logits, no rounding of either
# engine should change the order.
CLEAR_GAP = 0.3


def joined(ids):
    return ",".join(map(str, ids))


@pytest.fixture(scope="module")
def whit(tmp_path_factory):
    """Runs the client against a server of its own; returns the JSON objects it printed."""
    address = f"unix:{tmp_path_factory.mktemp('whit')}/socket"

    def run(*arguments):
        command = [BIN / "whit", *arguments, f"--server={address}", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    server = subprocess.Popen(
        [
            BIN / "whitd",
            f"--model={os.environ['WHIT_TEST_MODEL']}",
            f"--listen={address}",
            "--metrics-listen=off",
            "--kv-cache-bytes=256M",
        ]
    )
    try:
        run("health", "--wait=60s")
        yield run
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.mark.parametrize("prompt", REFERENCE["prompts"], ids=lambda prompt: prompt["text"][:24])
def test_tokenizes_alike(whit, prompt):
    [answer] = whit("tokenize", prompt["text"], "--parse-special")
    assert answer["token_ids"] == prompt["prompt_ids"]


@pytest.mark.parametrize("prompt", REFERENCE["prompts"], ids=lambda prompt: prompt["text"][:24])
def test_likeliest_tokens_are_the_same(whit, prompt):
    [scored] = whit(
        "score",
        f"--context-token-ids={joined(prompt['prompt_ids'])}",
        f"--token-ids={joined(prompt['greedy_ids'])}",
    )
    assert scored["token_ids"] == prompt["greedy_ids"]
    others = [
        (position, gap)
        for position, (gap, same) in enumerate(zip(prompt["gaps"], scored["is_greedy"]))
        if not same and gap > CLEAR_GAP
    ]
    assert others == []


@pytest.mark.parametrize("prompt", REFERENCE["prompts"], ids=lambda prompt: prompt["text"][:24])
def test_greedy_generation_is_the_same_until_a_close_call(whit, prompt):
    close = [position for position, gap in enumerate(prompt["gaps"]) if gap <= CLEAR_GAP]
    clear_tokens = close[0] if close else len(prompt["greedy_ids"])
    pieces = whit(
        "generate",
        f"--token-ids={joined(prompt['prompt_ids'])}",
        f"--max-new-tokens={len(prompt['greedy_ids'])}",
        "--ignore-eos",
    )
    generated = [token for piece in pieces for token in piece["token_ids"]]
    assert len(generated) == len(prompt["greedy_ids"])
    assert generated[:clear_tokens] == prompt["greedy_ids"][:clear_tokens]


def test_perplexity_is_the_same(whit):
    total = expected = tokens = 0
    for text in REFERENCE["texts"]:
        [scored] = whit(
            "score",
            f"--context-token-ids={joined(text['context_ids'])}",
            f"--token-ids={joined(text['ids'])}",
        )
        total += scored["total_logprob"]
        expected += sum(text["logprobs"])
        tokens += len(text["ids"])
    assert math.exp(-total / tokens) == pytest.approx(math.exp(-expected / tokens), rel=0.005)
