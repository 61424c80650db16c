"""whit-bench runs, and its rows have the shape that they promise. The figures are not judged."""

import json
import subprocess

import pytest


@pytest.fixture
def bench(real_model):
    from conftest import BIN_DIR

    def run(*arguments):
        return subprocess.run(
            [BIN_DIR / "whit-bench", f"--model={real_model}", "--repeats=1", "--steps=2",
             *arguments], capture_output=True, text=True, timeout=300)

    return run


def test_rows_are_json_objects(bench):
    done = bench("--json", "--only=decode_d16,prefill_512,batch4_d1024", "--kv-policy=static:K4V4")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    machine = ["dram_read", "weights_read", "int8_dot"]
    if "bf16_tiles" in rows:
        machine.append("bf16_tiles")
    assert list(rows) == [*machine, "decode_d16", "prefill_512", "batch4_d1024"]
    for row in rows.values():
        assert row["value"] > 0 and row["unit"]
        assert row["peers"] == []
        assert (row["roof_share"] is None) == (row["name"] in machine)
        assert row["roof"] in ([None] if row["name"] in machine else ["memory", "int8", "bf16"])


def test_it_says_which_policy_file_it_uses(bench):
    arguments = ("--only=decode_d16", "--kv-policy=static:K4V4")
    assert ".whitpolicy\n" in bench(*arguments).stdout
    assert "policy file: none\n" in bench(*arguments, "--kv-policy-file=off").stdout


def test_an_unknown_row_is_named(bench):
    done = bench("--only=decode_d17")
    assert done.returncode != 0 and "decode_d17" in done.stderr


@pytest.mark.parametrize("peer", ["--peer", "--peer=llama.cpp", "--peer=openvino", "--peer=vllm"])
def test_a_missing_peer_is_explained(bench, tmp_path, peer):
    done = bench("--only=decode_d16", peer, f"--peer-dir={tmp_path}")
    assert done.returncode == 1 and "fetch_peer" in done.stderr


def test_an_unknown_peer_is_named(bench):
    done = bench("--only=decode_d16", "--peer=llama.cpp,gpt")
    assert done.returncode == 1 and "'gpt'" in done.stderr


def test_versus_is_a_peer(bench):
    done = bench("--json", "--only=decode_d16", "--versus=static:K4V4")
    assert done.returncode == 0, done.stderr
    peers = json.loads(done.stdout.splitlines()[-1])["peers"]
    assert [peer["name"] for peer in peers] == ["Whit, KV static:K4V4"]
    assert peers[0]["value"] > 0 and peers[0]["ratio"] > 0
