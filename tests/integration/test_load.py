"""Traces of requests: simulated by whit-simulate, and played against a server by tests/bench/load."""

import json
import re
import subprocess
import sys

import pytest
from conftest import BIN_DIR, ROOT, clean_environment

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,74,14
2023-11-16 18:15:46.9951690,196,29
2023-11-16 18:15:47.2224670,379,25
"""


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def simulate(*arguments):
    return subprocess.run([BIN_DIR / "whit-simulate", *arguments], capture_output=True, text=True,
                          timeout=60, env=clean_environment())


def test_a_trace_is_simulated(trace):
    arguments = (f"--trace={trace}", "--duration=30s", "--rate=0.5", "--kv-cache-bytes=64M")
    done = simulate(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["requests"] == result["finished"] == 15
    assert result["broken_promises"] == 0 and result["rejected"] == {}
    assert 0 < result["ttft_seconds"]["p50"] <= result["ttft_seconds"]["p99"]
    assert simulate(*arguments, "--json").stdout == done.stdout
    assert re.search(r"finished +15 ", simulate(*arguments).stdout)


def test_overload_is_in_multiples_of_what_the_server_finishes(trace):
    done = simulate(f"--trace={trace}", "--duration=20s", "--overload=4", "--kv-cache-bytes=24M",
                    "--max-queue-requests=2", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert result["rejected"]["queue_full"] > result["requests"] / 2


@pytest.mark.parametrize("arguments, words", [
    (("--duration=soon",), "soon"),
    (("--kv-policy=best",), "best"),
    (("--kv-floor=K3V3",), "K3V3"),
    (("--rate=1", "--overload=2"), "excludes"),
])
def test_a_wrong_flag_is_named(trace, arguments, words):
    done = simulate(f"--trace={trace}", *arguments)
    assert done.returncode == 2 and words in done.stderr


def test_a_wrong_trace_is_named(tmp_path):
    missing = simulate(f"--trace={tmp_path / 'none.csv'}")
    assert missing.returncode == 1 and "none.csv" in missing.stderr
    (tmp_path / "bad.csv").write_text(TRACE + "today,1,1\n")
    bad = simulate(f"--trace={tmp_path / 'bad.csv'}")
    assert bad.returncode == 1 and "line 5" in bad.stderr


def load(server, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tests/bench/load", f"--server={server.address}", *arguments],
        capture_output=True, text=True, timeout=60, env=clean_environment())


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"prompt": "The cat sat on the mat and looked. " * 100}) + "\n")
    return path


def test_a_trace_is_played_against_a_server(start, tiny_model, trace, text):
    server = start(tiny_model, "--kv-cache-bytes=64M")
    done = load(server, f"--text={text}", f"--trace={trace}", "--rate=20", "--json",
                "--policy", "fp16", "static:K4V4")
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["policy"] for result in results] == ["fp16", "static:K4V4"]
    for result in results:
        assert result["outcomes"] == {"finished": 3} and result["rejections"] == 0
        assert 0 < result["ttft_p50"] <= result["ttft_p99"]
    assert results[0]["mean_bits_at_end"] > results[1]["mean_bits_at_end"]


def test_rejections_have_reasons_and_who_comes_back_gets_through(start, tiny_model, text):
    server = start(tiny_model, "--max-running=1", "--max-queue-requests=1")
    burst = (f"--text={text}", "--requests=6", "--prompt-tokens=64", "--new-tokens=1500")
    [once] = [json.loads(load(server, *burst, "--json").stdout)]
    assert once["outcomes"]["rejected, queue_full"] >= 1
    assert once["finished"] + once["outcomes"]["rejected, queue_full"] == 6
    [again] = [json.loads(load(server, *burst, "--retries=200", "--json").stdout)]
    assert again["finished"] == 6 and again["rejections"] > 0
