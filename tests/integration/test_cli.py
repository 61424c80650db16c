"""The client `whit`."""

import json
import os
import pty
import re
import signal
import subprocess
import termios
import time

import pytest
from conftest import BIN_DIR, clean_environment
from whitd import TIMEOUT, eventually


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_generate_streams_text_and_ends_with_figures(server, whit):
    done = whit(server, "generate", "Hello", "--max-new-tokens=20")
    assert done.returncode == 0
    assert done.stdout.endswith("\n") and len(done.stdout) > 10
    assert done.stderr.startswith("whit: 20 tokens, ")
    assert "tokens/s" in done.stderr and "at FP16" in done.stderr
    assert whit(server, "generate", "Hello", "--quiet").stderr == ""


def test_generate_prints_json_lines(server, whit):
    pieces = lines(whit(server, "generate", "Hello", "--max-new-tokens=20", "--json"))
    assert all({"token_ids", "text"} <= piece.keys() for piece in pieces)
    assert all("finish_reason" not in piece for piece in pieces[:-1])
    assert sum(len(piece["token_ids"]) for piece in pieces) == 20
    last = pieces[-1]
    assert last["finish_reason"] == "FINISH_REASON_LENGTH"
    assert last["usage"]["completion_tokens"] == 20
    assert isinstance(last["kv_cache"]["true_bytes"], int)
    assert last["kv_cache"]["rungs"][0]["rung"] == "FP16"
    assert last["timings"]["decode_seconds"] > 0
    assert last["request_id"]
    plain = whit(server, "generate", "Hello", "--max-new-tokens=20").stdout
    assert plain.rstrip("\n") == "".join(piece["text"] for piece in pieces).rstrip("\n")


def test_generate_takes_its_prompt_in_many_ways(server, whit):
    flags = ("--max-new-tokens=10", "--json")

    def tokens(*arguments, **options):
        pieces = lines(whit(server, "generate", *arguments, *flags, **options))
        return [token for piece in pieces for token in piece["token_ids"]]

    ids = lines(whit(server, "tokenize", "A prompt", "--json"))[0]["token_ids"]
    by_text = tokens("A prompt")
    assert tokens("-", input="A prompt") == by_text
    assert tokens("--token-ids=" + ",".join(map(str, ids))) == by_text
    chat = tokens("A prompt", "--chat")
    assert chat != by_text
    assert tokens("A prompt", "--chat", "--system=Be odd.") != chat


def test_generate_passes_every_sampling_and_stopping_flag(server, whit):
    def piece(*flags):
        return lines(whit(server, "generate", "Flags", "--json", *flags))

    def error(*flags):
        done = whit(server, "generate", "Flags", *flags)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    seeded = ("--temperature=1.5", "--seed=3", "--max-new-tokens=20", "--top-k=50", "--top-p=0.9",
              "--min-p=0.01")
    first, second = ("".join(p["text"] for p in piece(*seeded)) for _ in range(2))
    assert first == second
    assert piece("--stop-token-ids=1,2", "--max-new-tokens=3", "--ignore-eos")[-1]["usage"]
    logprobs = piece("--logprobs=2", "--max-new-tokens=3")[0]["logprobs"]
    assert len(logprobs[0]["top"]) == 2 and logprobs[0]["logprob"] < 0
    for flag, message in [
        ("--top-p=0", "top_p"), ("--min-p=2", "min_p"),
        ("--repetition-penalty=0", "repetition_penalty"),
        ("--presence-penalty=999", "presence_penalty"),
        ("--frequency-penalty=999", "frequency_penalty"), ("--temperature=nan", "temperature"),
        ("--kv-policy=best", "best"), ("--kv-target-bits=1", "target_bits"),
        ("--kv-floor-rung=K1", "K1"), ("--request-id=a\tb", "request_id"),
    ]:
        assert message in error(flag)


def test_explain_shows_what_each_token_was_kept_at(server, whit):
    done = whit(server, "generate", "Explain " + "x" * 200, "--explain", "--max-new-tokens=8",
                "--kv-policy=static:K2V2")
    assert done.returncode == 0 and "\x1b[48;5;" in done.stdout and "bits per element:" in done.stdout
    *_, last = lines(whit(server, "generate", "Explain " + "x" * 200, "--explain", "--json",
                          "--max-new-tokens=8", "--kv-policy=static:K2V2"))
    bits = [token["bits"] for token in last["kv_cache"]["tokens"]]
    assert len(bits) == last["usage"]["prompt_tokens"] + 7
    assert bits[0] == 16 and min(bits) == 3  # the sink; 2 bits and a scale for 16 dimensions


def test_two_stop_strings_are_two(server, whit):
    flags = ("--max-new-tokens=60", "--quiet", "--temperature=1.5", "--seed=1")
    whole = whit(server, "generate", "Stop", *flags).stdout
    stop = next(whole[i : i + 3] for i in range(5, 50) if whole.index(whole[i : i + 3]) == i)
    for stops in ((stop, "never comes"), ("never comes", stop)):
        done = whit(server, "generate", "Stop", *flags, *(f"--stop={text}" for text in stops))
        assert done.stdout == whole[: whole.index(stop)] + "\n"


def test_score(server, whit):
    [score] = lines(whit(server, "score", "The sky", " is", "--json"))
    assert len(score["token_ids"]) == len(score["logprobs"]) == len(score["is_greedy"]) > 0
    assert score["total_logprob"] == pytest.approx(sum(score["logprobs"]))
    assert score["usage"]["prompt_tokens"] > len(score["token_ids"])
    plain = whit(server, "score", "The sky", " is").stdout
    assert f"total {score['total_logprob']:.4f}" in plain and "perplexity" in plain
    ids = ",".join(map(str, score["token_ids"]))
    [by_ids] = lines(whit(server, "score", "The sky", f"--token-ids={ids}", "--json"))
    assert by_ids["logprobs"] == score["logprobs"]


def test_tokenize_and_detokenize(server, whit):
    [reply] = lines(whit(server, "tokenize", "Grüße 🙂", "--json"))
    assert reply.keys() == {"token_ids"}
    plain = whit(server, "tokenize", "Grüße 🙂").stdout.strip()
    assert plain == ",".join(map(str, reply["token_ids"]))
    assert whit(server, "detokenize", plain).stdout == "Grüße 🙂\n"
    assert whit(server, "detokenize", *plain.split(",")).stdout == "Grüße 🙂\n"
    assert lines(whit(server, "detokenize", plain, "--json")) == [{"text": "Grüße 🙂"}]
    assert whit(server, "tokenize", "-", input="Grüße 🙂").stdout.strip() == plain
    assert lines(whit(server, "tokenize", "<|im_start|>", "--parse-special", "--json")) == [
        {"token_ids": [1]}]
    assert len(lines(whit(server, "tokenize", "<|im_start|>", "--json"))[0]["token_ids"]) > 1


def test_model_and_capacity(server, whit):
    [model] = lines(whit(server, "model", "--json"))
    assert model["context_length"] == 2048 and isinstance(model["parameters"], int)
    assert "chatml" in whit(server, "model").stdout
    [capacity] = lines(whit(server, "capacity", "--json"))
    assert capacity["kv_cache_used_bytes"] == 0 and capacity["headroom_tokens_floor"] > 0
    assert capacity["draining"] is False
    assert "room for" in whit(server, "capacity").stdout


def test_capacity_once_has_no_colours_in_a_pipe(server, whit):
    shown = whit(server, "capacity").stdout
    assert "KV cache" in shown and "generating" in shown and "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_capacity_watch_prints_lines_without_a_terminal(server, whit):
    done = whit(server, "capacity", "--watch", "--interval=100ms", "--count=3")
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert len(shown) == 3 and all(" KV 0 B of " in line for line in shown)
    assert "\x1b" not in done.stdout
    snapshots = lines(whit(server, "capacity", "--watch", "--interval=100ms", "--count=2", "--json"))
    assert [now["requests_running"] for now in snapshots] == [0, 0]


def test_capacity_watch_fails_if_there_is_no_server(whit):
    done = whit(None, "capacity", "--watch", "--server=127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("whit: UNAVAILABLE: ") and done.stderr.count("\n") == 1


def test_capacity_watch_outlives_its_server(start, tiny_model, tmp_path):
    address = f"unix:{tmp_path}/whit.sock"
    first = start(tiny_model, f"--listen={address}", "--max-running=3")
    watch = subprocess.Popen(
        [BIN_DIR / "whit", "capacity", "--watch", "--interval=100ms", "--json",
         f"--server={address}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment())
    assert json.loads(watch.stdout.readline())["max_running_requests"] == 3
    assert first.stop() == 0
    failure = watch.stderr.readline()
    assert failure.startswith("whit: ") and failure.endswith("; trying again\n")
    start(tiny_model, f"--listen={address}", "--max-running=4")
    while json.loads(watch.stdout.readline())["max_running_requests"] != 4:
        pass
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=TIMEOUT)
    assert watch.returncode == 130


def test_health_is_an_exit_status(server, whit):
    assert whit(server, "health").stdout == "SERVING\n"
    assert lines(whit(server, "health", "--json")) == [{"status": "SERVING"}]
    assert whit(server, "health", "--service=whit.v1.TextGenerationService").returncode == 0
    unknown = whit(server, "health", "--service=nobody")
    assert unknown.returncode == 1 and "NOT_FOUND" in unknown.stderr
    nobody = whit(None, "health", "--server=127.0.0.1:1")
    assert nobody.returncode == 1 and "UNAVAILABLE" in nobody.stderr


def test_health_waits_for_a_server_that_starts(start, tiny_model, tmp_path):
    address = f"unix:{tmp_path}/whit.sock"
    waiting = subprocess.Popen([BIN_DIR / "whit", "health", f"--server={address}", "--wait=60s"],
                               stdout=subprocess.PIPE, text=True, env=clean_environment())
    time.sleep(0.2)
    assert waiting.poll() is None
    start(tiny_model, f"--listen={address}")
    assert waiting.wait(TIMEOUT) == 0
    assert waiting.stdout.read() == "SERVING\n"


def test_health_gives_up_waiting(whit, tmp_path):
    done = whit(None, "health", f"--server=unix:{tmp_path}/none.sock", "--wait=300ms")
    assert done.returncode == 1 and done.stderr.startswith("whit: ")


def test_the_server_is_named_by_flag_or_environment(server, whit):
    assert whit(server, "health").returncode == 0  # WHIT_SERVER
    assert whit(server, "health", "--server=127.0.0.1:1").returncode == 1
    assert whit(None, "health", f"--server={server.address}").returncode == 0
    assert whit(None, f"--server={server.address}", "health").returncode == 0


def test_errors_are_one_clear_line(server, whit):
    done = whit(server, "generate", "")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "whit: INVALID_ARGUMENT: prompt is empty\n"
    done = whit(None, "generate", "x", "--server=127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("whit: UNAVAILABLE: ") and "127.0.0.1:1" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    (), ("dance",), ("generate",), ("generate", "x", "--colour"), ("generate", "x", "--top-k=many"),
    ("generate", "x", "--token-ids=1"), ("generate", "x", "--system=y"), ("score", "x"),
    ("tokenize",), ("health", "--wait=soon"), ("capacity", "--interval=2s"),
    ("capacity", "--watch", "--interval=1ms"), ("capacity", "--watch", "--count=many"), ("generate", "x", "--timeout=never"),
])
def test_wrong_flags_are_usage_errors(whit, arguments):
    done = whit(None, *arguments)
    assert done.returncode == 2
    assert done.stderr and done.stdout == ""


def test_help_teaches(whit):
    main = whit(None, "--help").stdout
    for command in ("generate", "chat", "score", "tokenize", "detokenize", "model", "capacity",
                    "health"):
        assert command in main
        own = whit(None, command, "--help")
        assert own.returncode == 0
        assert all(flag in own.stdout for flag in ("--server", "--timeout", "--retry", "--json"))
        assert max(map(len, own.stdout.splitlines())) <= 100


def test_a_timeout_is_a_deadline(start, slow_model, whit):
    server = start(slow_model, "--kv-cache-bytes=1G")
    done = whit(server, "generate", "Go on", "--max-new-tokens=20000", "--ignore-eos",
                "--timeout=1s")
    assert done.returncode == 1
    assert "DEADLINE_EXCEEDED" in done.stderr


def test_retry_gets_through_a_full_server(full_server):
    """A C++ client with a gRPC retry policy."""
    server, make_room = full_server
    client = subprocess.Popen(
        [BIN_DIR / "whit", "generate", "Me too", f"--server={server.address}", "--retry",
         "--max-new-tokens=5", "--ignore-eos", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment())
    server.wait_for_event("request", reason="queue_full")
    make_room()
    out, error = client.communicate(timeout=TIMEOUT)
    assert (client.returncode, error) == (0, "")
    pieces = [json.loads(line) for line in out.splitlines()]
    assert sum(len(piece["token_ids"]) for piece in pieces) == 5


def test_without_retry_a_full_server_is_an_error(full_server, whit):
    server, _ = full_server
    done = whit(server, "generate", "Me too")
    assert done.returncode == 1 and "RESOURCE_EXHAUSTED" in done.stderr


def long_generation(server, *flags, **options):
    return subprocess.Popen(
        [BIN_DIR / "whit", "generate", "Go on", f"--server={server.address}",
         "--max-new-tokens=20000", "--ignore-eos", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(), **options)


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_ctrl_c_cancels(start, slow_model, flags):
    server = start(slow_model, "--kv-cache-bytes=1G")
    client = long_generation(server, *flags)
    client.stdout.read(5)
    client.send_signal(signal.SIGINT)
    _, error = client.communicate(timeout=TIMEOUT)
    assert client.returncode == 130
    assert error == b""
    server.wait_until_empty()
    server.wait_for_event("request", code="CANCELLED")


def test_a_broken_pipe_is_quiet(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G")
    client = long_generation(server)
    client.stdout.read(5)
    client.stdout.close()
    assert client.wait(TIMEOUT) == -signal.SIGPIPE
    assert client.stderr.read() == b""
    server.wait_until_empty()


def test_a_full_disk_is_an_error(server):
    with open("/dev/full", "w") as full:
        done = subprocess.run([BIN_DIR / "whit", "model", f"--server={server.address}"],
                              stdout=full, stderr=subprocess.PIPE, text=True,
                              env=clean_environment())
    assert done.returncode == 1
    assert done.stderr == "whit: standard output: No space left on device\n"


def test_chat_keeps_the_talk_as_context(server, whit):
    done = whit(server, "chat", "--max-new-tokens=8", "--json", "--system=Be brief.",
                input="First\n\nSecond\n")
    ends = [piece for piece in lines(done) if "finish_reason" in piece]
    assert len(ends) == 2
    assert ends[1]["usage"]["prompt_tokens"] > ends[0]["usage"]["prompt_tokens"] + 8


def test_chat_says_what_was_wrong_and_goes_on(server, whit):
    done = whit(server, "chat", "--max-new-tokens=5", input="x" * 100_000 + "\nshort\n")
    assert "INVALID_ARGUMENT" in done.stderr
    assert len(done.stdout) > 3


class Terminal:
    """A program that believes to talk with a person."""

    def __init__(self, *command, columns=100, **environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(0, (40, columns))
            os.execve(command[0], command, clean_environment(TERM="xterm", **environment))
        self.screen = ""

    def wait_for(self, condition):
        deadline = time.monotonic() + TIMEOUT
        while not condition(self.screen):
            assert time.monotonic() < deadline, self.screen
            self.screen += os.read(self.fd, 4096).decode(errors="replace")

    def type(self, text):
        os.write(self.fd, text.encode())

    def exit_status(self):
        while True:  # what it still prints must be read for it to end
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def columns(view):
    """The widest line's, without escape sequences."""
    return max(map(len, re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", view).splitlines()))


def test_capacity_watch_draws_over_itself_on_a_terminal(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G")
    client = long_generation(server)
    client.stdout.read(5)
    watch = Terminal(str(BIN_DIR / "whit"), "capacity", "--watch", "--interval=100ms",
                     f"--server={server.address}", NO_COLOR="")
    watch.wait_for(lambda screen: screen.count("generating") >= 3)
    first, second, *_ = re.split("\x1b\\[[0-9]+A\r", watch.screen)
    assert first.count("\n") == second.count("\n")  # up to where it began
    for figure in ("KV cache", "reserved", "FP16", "precision", "price", "room for",
                   "running     1 of 64 requests", "waiting", "tokens/s"):
        assert figure in second
    assert "\x1b[38;5;" in second
    assert 80 < columns(second) <= 100

    termios.tcsetwinsize(watch.fd, (40, 50))
    watch.wait_for(lambda screen: "\x1b[2J" in screen)  # wrapped lines cannot be drawn over
    watch.wait_for(lambda screen: "generating" in screen.split("\x1b[2J")[-1])
    assert columns(watch.screen.split("\x1b[2J")[-1]) <= 50

    client.send_signal(signal.SIGINT)
    client.communicate(timeout=TIMEOUT)
    watch.wait_for(lambda screen: "running     0 of 64" in screen)
    watch.type("\x03")
    assert watch.exit_status() == 130


def test_no_color_is_respected(server):
    watch = Terminal(str(BIN_DIR / "whit"), "capacity", "--watch", "--count=1",
                     f"--server={server.address}", NO_COLOR="1")
    watch.wait_for(lambda screen: "generating" in screen)
    assert watch.exit_status() == 0
    assert "\x1b[38;5;" not in watch.screen and "░" in watch.screen


def test_chat_on_a_terminal(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G")
    chat = Terminal(str(BIN_DIR / "whit"), "chat", f"--server={server.address}",
                    "--max-new-tokens=20000", "--ignore-eos")
    prompt = "\r\n> "
    chat.wait_for(lambda screen: screen.endswith(prompt))
    chat.type("Talk to me\n")
    chat.wait_for(lambda screen: len(screen.partition("Talk to me")[2]) > 50)
    chat.type("\x03")  # stops the answer, not the program
    chat.wait_for(lambda screen: screen.endswith(prompt))
    server.wait_until_empty()
    chat.type("half a line\x03")  # drops the line
    chat.wait_for(lambda screen: screen.count(prompt) == 3)
    chat.type("Again\n")
    chat.wait_for(lambda screen: len(screen.partition("Again")[2]) > 50)
    assert server.capacity().requests_running == 1
    chat.type("\x03")
    chat.wait_for(lambda screen: screen.endswith(prompt))
    chat.type("\x04")
    assert chat.exit_status() == 0


def test_ctrl_c_on_a_terminal_ends_generate(start, slow_model):
    server = start(slow_model, "--kv-cache-bytes=1G")
    generate = Terminal(str(BIN_DIR / "whit"), "generate", "Go on", f"--server={server.address}",
                        "--max-new-tokens=20000", "--ignore-eos")
    generate.wait_for(lambda screen: len(screen) > 20)
    generate.type("\x03")
    assert generate.exit_status() == 130
    eventually(lambda: server.capacity().requests_running == 0, "the request is cancelled")
