"""tests/eval/report measures, keeps what it has measured, and says what it has not."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def report(real_model, tmp_path):
    from conftest import BIN_DIR, ROOT

    items = tmp_path / "items.jsonl"
    items.write_text("".join(
        json.dumps({"query": f"The colour of {thing} is", "choices": ["blue", "green"], "gold": 1})
        + "\n" for thing in ("grass", "a leaf")))

    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "tests/eval/report", f"--model={real_model}", "--quick",
             f"--out={tmp_path / 'out'}", f"--text={ROOT / 'README.md'}",
             f"--task=openbookqa={items}", f"--bin-dir={BIN_DIR}", *arguments],
            capture_output=True, text=True, timeout=300)

    return run


def test_finished_parts_are_kept_and_the_rest_is_said_to_be_missing(report, tmp_path):
    arguments = ("--only=kld_256_adaptive", "--only=tasks_openbookqa_static")
    first = report(*arguments)
    assert first.returncode == 0, first.stderr
    assert "[2/2]" in first.stdout
    page = (tmp_path / "out/report.md").read_text()
    assert "| `adaptive:3` |" in page and "| openbookqa | `naive:K4V4` |" in page
    assert "`kld_256_oracle`" in page and "`bench_rule`" in page  # missing
    assert "<svg" in (tmp_path / "out/kld.svg").read_text()
    assert "<svg" in (tmp_path / "out/tasks.svg").read_text()

    again = report(*arguments)
    assert again.returncode == 0 and "[" not in again.stdout
    assert (tmp_path / "out/report.md").read_text() == page
    assert "[1/1]" in report("--only=kld_256_adaptive", "--force").stdout


def test_what_is_wrong_is_named(report):
    done = report("--only=kld_257")
    assert done.returncode != 0 and "kld_257" in done.stderr
    done = report("--task=chess=/nowhere.jsonl", "--only=kld")
    assert done.returncode != 0 and "/nowhere.jsonl" in done.stderr
    done = report("--kv-policy-file=/nowhere.whitpolicy", "--only=kld_256_adaptive")
    assert done.returncode != 0 and "/nowhere.whitpolicy" in done.stderr
