"""whit-calibrate, and what whitd makes of its file."""

import json
import math
import shutil
import struct
import subprocess

import grpc
import pytest
from conftest import BIN_DIR, ROOT, clean_environment, make_model
from test_start import fails
from whitd import TIMEOUT, Stream, Whitd, request

TEXT = "The cat sat on the mat, and the dog said hello to the world of that man in there. " * 40
QUICK = ("--tokens=600", "--contexts=200", "--training-steps=10")
CHAT = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "hi"}]}\n'


def calibrate(*arguments):
    return subprocess.run([BIN_DIR / "whit-calibrate", *arguments], capture_output=True, text=True,
                          timeout=60, env=clean_environment())


def evaluate(model, text, *flags):
    return subprocess.run(
        [BIN_DIR / "whit-eval", "kld", f"--model={model}", f"--text={text}", "--contexts=400",
         "--tokens=800", "--arms=adaptive:3,adaptive:6", *flags],
        capture_output=True, text=True, timeout=60, env=clean_environment())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with m.gguf, its m.whitpolicy, and the texts that were used."""
    folder = tmp_path_factory.mktemp("calibrate")
    make_model(folder / "m.gguf")
    (folder / "a.txt").write_text(TEXT)
    (folder / "short.txt").write_text(TEXT[:500])
    (folder / "words.txt").write_text("The cat sat.")
    (folder / "empty.txt").touch()
    (folder / "empty.jsonl").touch()
    (folder / "b.jsonl").write_text(CHAT % TEXT[:400] * 5)
    done = calibrate(f"--model={folder}/m.gguf", "--text", folder / "a.txt", folder / "b.jsonl",
                     *QUICK, "--threads=1")
    assert done.returncode == 0, done.stderr
    assert "a.txt: " in done.stdout and "b.jsonl: " in done.stdout
    assert "key_energy_explained" in done.stdout and "m.whitpolicy" in done.stdout
    for phase in ("measuring keys", "observing attention", "learning importance",
                  "measuring rungs", "training the learned controller"):
        assert f"{phase} [##############################] 100 %" in done.stderr
    return folder


def test_the_same_text_and_seed_give_the_same_bytes(files, tmp_path):
    def policy(seed, threads):
        out = tmp_path / f"{seed}-{threads}"
        done = calibrate(f"--model={files}/m.gguf", f"--text={files}/a.txt",
                         f"--text={files}/b.jsonl", f"--out={out}", *QUICK,
                         f"--seed={seed}", f"--threads={threads}")
        assert done.returncode == 0, done.stderr
        return out.read_bytes()

    assert policy(1, 2) == (files / "m.whitpolicy").read_bytes()
    assert policy(2, 2) != policy(1, 1)


def test_the_server_takes_the_file_beside_the_model(files):
    server = Whitd(BIN_DIR / "whitd", files / "m.gguf", "--kv-policy=static:K2V2")
    server.wait_for_event("policy file", path=str(files / "m.whitpolicy"))
    server.check_alive()
    assert server.stop() == 0


def test_the_server_says_that_there_is_none(tiny_model):
    server = Whitd(BIN_DIR / "whitd", tiny_model, "--kv-policy=static:K2V2")
    line = server.wait_for_event("no policy file", level="warn")
    assert "whit-calibrate" in line["remedy"]
    server.check_alive()
    assert server.stop() == 0


@pytest.mark.parametrize("calibrated", [False, True])
def test_adaptive_serves_with_and_without_a_file(files, tiny_model, start, calibrated):
    server = start(files / "m.gguf" if calibrated else tiny_model, "--kv-policy=adaptive:4")
    line = server.wait_for_event("policy file" if calibrated else "no policy file")
    assert line["policy"] == "adaptive:4"
    # Without importance there are rules of thumb, and the log says what to do about it.
    learned = calibrated and "importance" in line["sections"].split(",")
    assert ("remedy" in line) == (not learned)
    with server.client() as stub:
        got = Stream(stub.GenerateStream(request("x" * 700, max_new_tokens=50), timeout=TIMEOUT))
    assert got.code == grpc.StatusCode.OK
    kv_cache = got.last.kv_cache
    assert kv_cache.policy == "adaptive:4"
    tokens = {rung.rung: rung.tokens for rung in kv_cache.rungs}
    assert tokens["FP16"] == 16  # the sink
    assert sum(tokens.values()) == got.last.usage.prompt_tokens + 49
    metrics = server.metrics()
    decided = sum(value for (name, _), value in metrics.items()
                  if name == "whit_controller_decisions_total")
    assert decided > 0


@pytest.mark.parametrize("calibrated, flags, policy, reason", [
    (True, [], "adaptive", "importance"),
    (True, ["--kv-policy=fp16"], "fp16", "--kv-policy"),
    (True, ["--kv-policy-file=off"], "static:K8V8", "not known"),
    (False, [], "static:K8V8", "not known"),
    (False, ["--kv-target-bits=5"], "adaptive", "--kv-target-bits"),
    (False, ["--kv-policy=adaptive"], "adaptive", "--kv-policy"),
])
def test_the_default_policy_goes_by_what_is_known(files, tiny_model, start, calibrated, flags,
                                                  policy, reason):
    server = start(files / "m.gguf" if calibrated else tiny_model, *flags)
    line = next(line for line in server.log if "because" in line)
    assert line["policy"] == policy and reason in line["because"]
    # 3.5 unless something else was asked for; only adaptive spends bits of a target.
    spends = policy == "adaptive" and "--kv-target-bits=5" not in flags
    assert line.get("packed_bits") == ("3.5" if spends else None)
    with server.client() as stub:
        got = Stream(stub.GenerateStream(request("x" * 300, max_new_tokens=8), timeout=TIMEOUT))
    assert got.last.kv_cache.policy == policy


def test_the_server_uses_none_if_told_so(files):
    server = Whitd(BIN_DIR / "whitd", files / "m.gguf", "--kv-policy=static:K2V2",
                   "--kv-policy-file=off")
    server.wait_for_event("no policy file", level="info")
    assert server.stop() == 0


def test_an_installed_tree_finds_its_policy_files(files, tmp_path):
    build = BIN_DIR.parent
    if not (build / "cmake_install.cmake").exists():
        pytest.skip(f"{build} is no build tree")
    subprocess.run(["cmake", "--install", build, "--prefix", tmp_path / "whit"], check=True,
                   capture_output=True)
    installed = tmp_path / "whit"
    for name in ("whitd", "whit", "whit-calibrate"):
        subprocess.run([installed / "bin" / name, "--help"], check=True, capture_output=True)
    policies = installed / "share/whit/policies"
    assert {path.name for path in policies.iterdir()} == {
        path.name for path in (ROOT / "controller/calibrated").glob("*.whitpolicy")}
    shutil.copy(files / "m.whitpolicy", policies / "another-name.whitpolicy")
    shutil.copy(files / "m.gguf", tmp_path / "m.gguf")
    server = Whitd(installed / "bin/whitd", tmp_path / "m.gguf")
    server.wait_for_event("policy file", path=str(policies / "another-name.whitpolicy"))
    assert server.stop() == 0


def sealed(data):
    """The bytes of a policy file with the checksum that they should have: FNV-1a."""
    checksum = 0xCBF29CE484222325
    for byte in data[:-8]:
        checksum = ((checksum ^ byte) * 0x100000001B3) % 2**64
    return data[:-8] + struct.pack("<Q", checksum)


def with_nan(data, section):
    """The third number of the section's first array is NaN."""
    at = data.index(section.encode() + bytes(16 - len(section))) + 24 + 8
    at += 16 if section == "importance" else 0  # four numbers about its shape
    return sealed(data[:at] + struct.pack("<f", math.nan) + data[at + 4 :])


BAD_FILES = {
    "cut": (lambda data: data[:200], "cut: truncated"),
    "cut in half": (lambda data: data[: len(data) // 2], "cut in half: truncated"),
    "empty": (lambda data: b"", "empty: not a policy file"),
    "text": (lambda data: TEXT.encode(), "text: not a policy file"),
    "damaged": (lambda data: data[:99] + b"?" + data[100:], "damaged: the checksum is"),
    "version 2": (lambda data: sealed(data[:8] + b"\x02" + data[9:]),
                  "version 2: policy file version 2 is not supported; version 1 is"),
    **{f"NaN in {section}": (lambda data, section=section: with_nan(data, section),
                             f"section '{section}': {what} is nan")
       for section, what in [("key_means", "element 2"), ("importance", "centers 2"),
                             ("learned", "centers 2"), ("sensitivities", "element 2")]},
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused(files, tmp_path, name):
    change, error = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(change((files / "m.whitpolicy").read_bytes()))
    assert error in fails(f"--model={files}/m.gguf", f"--kv-policy-file={path}")
    done = evaluate(files / "m.gguf", files / "a.txt", f"--kv-policy-file={path}")
    assert done.returncode != 0 and error in done.stderr


def test_another_models_file_is_refused(files, tmp_path):
    make_model(tmp_path / "other.gguf", "--layers=3")
    for error in (fails(f"--model={tmp_path}/other.gguf", f"--kv-policy-file={files}/m.whitpolicy"),
                  evaluate(tmp_path / "other.gguf", files / "a.txt",
                           f"--kv-policy-file={files}/m.whitpolicy").stderr):
        assert "made for another model" in error and "3 layers" in error and "2 layers" in error


def test_a_file_that_is_not_there_is_named(files):
    assert "none.whitpolicy: no such file" in fails(
        f"--model={files}/m.gguf", "--kv-policy-file=none.whitpolicy")


def test_another_model_is_calibrated_served_and_evaluated(tmp_path, start):
    """Nothing is known of its shape beforehand."""
    model = make_model(tmp_path / "wide.gguf", "--layers=3", "--heads=6", "--kv-heads=3",
                       "--head-dim=32", "--hidden=96", "--ffn=128", "--seed=5")
    (tmp_path / "a.txt").write_text(TEXT)
    done = calibrate(f"--model={model}", "--text", tmp_path / "a.txt", *QUICK)
    assert done.returncode == 0, done.stderr

    server = start(model, "--kv-target-bits=6")
    line = server.wait_for_event("policy file", path=str(tmp_path / "wide.whitpolicy"))
    assert (line["policy"], line["target_bits"]) == ("adaptive", "6")
    with server.client() as stub:
        got = Stream(stub.GenerateStream(request(TEXT[:1600], max_new_tokens=100), timeout=TIMEOUT))
    assert got.code == grpc.StatusCode.OK
    assert got.last.kv_cache.mean_bits == pytest.approx(6, rel=0.1)  # of this one request

    done = evaluate(model, tmp_path / "a.txt", f"--json={tmp_path}/kld.json")
    assert done.returncode == 0, done.stderr
    assert "policy file: " in done.stderr and "wide.whitpolicy" in done.stderr
    exact, low, high = json.loads((tmp_path / "kld.json").read_text())
    assert (exact["arm"], low["arm"], high["arm"]) == ("fp16", "adaptive:3", "adaptive:6")
    assert 0 == exact["kld_mean"] < high["kld_mean"] < low["kld_mean"]
    assert low["packed_bits"] < high["packed_bits"]


@pytest.mark.parametrize("arguments, status, error", [
    (["--model={files}/m.gguf"], 2, "--text is required"),
    (["--model={files}/m.gguf", "--text={files}/a.txt", "--tokens=1"], 2, "--tokens"),
    (["--model={files}/none.gguf", "--text={files}/a.txt"], 1, "none.gguf: No such file"),
    (["--model={files}/m.gguf", "--text={files}/none.txt"], 1, "none.txt: no such file"),
    (["--model={files}/m.gguf", "--text={files}/m.gguf"], 1, "m.gguf: "),
    (["--model={files}/m.gguf", "--text={files}/short.txt", *QUICK], 1, "too little text"),
    (["--model={files}/m.gguf", "--text={files}/words.txt"], 1,
     "too little text: the longest file has 7 tokens"),
    (["--model={files}/m.gguf", "--text={files}/empty.txt"], 1, "empty.txt: no text in it"),
    (["--model={files}/m.gguf", "--text={files}/a.txt", "--text={files}/empty.jsonl"], 1,
     "empty.jsonl: no text in it"),
    (["--model={files}/m.gguf", "--text={files}/a.txt", "--out={files}/none/x"], 1, "none/x: "),
    (["--model={files}/m.gguf", "--text={files}/a.txt", "--out={files}"], 1, "is a folder"),
])
def test_errors_say_what_is_wrong(files, arguments, status, error):
    done = calibrate(*(argument.format(files=files) for argument in arguments))
    assert done.returncode == status
    assert error in done.stderr
    assert done.stdout == ""
