"""whit-bench runs, and its rows have the shape that they promise. The figures are not judged."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
BIN = pathlib.Path(os.environ.get("WHIT_BIN", ROOT / "build/release/bin"))
MODEL = os.environ["WHIT_TEST_MODEL"]


def bench(*arguments):
    return subprocess.run(
        [BIN / "whit-bench", f"--model={MODEL}", "--repeats=1", "--steps=2", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_rows_are_json_objects():
    done = bench("--json", "--only=decode_d16,prefill_512,batch4_d1024")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    machine = ["dram_read", "weights_read", "int8_dot"]
    assert list(rows) == [*machine, "decode_d16", "prefill_512", "batch4_d1024"]
    for row in rows.values():
        assert row["value"] > 0 and row["unit"]
        assert row["peer"] is row["peer_value"] is row["ratio"] is None
        assert (row["roof_share"] is None) == (row["name"] in machine)
        assert row["roof"] in ([None] if row["name"] in machine else ["memory", "int8"])


def test_an_unknown_row_is_named():
    done = bench("--only=decode_d17")
    assert done.returncode != 0 and "decode_d17" in done.stderr


def test_a_missing_peer_is_explained(tmp_path):
    done = bench("--only=decode_d16", "--peer", f"--peer-dir={tmp_path}")
    assert done.returncode == 1 and "fetch_peer" in done.stderr
