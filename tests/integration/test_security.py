"""TLS and tokens: who gets in, and what they may do."""

import concurrent.futures
import socket
import ssl
import threading
import time

import grpc
import pytest
from certificates import Authority, replace
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from secured import (EXHAUSTED, TOKENS, UNAUTHENTICATED, bearer, generate, tls_channel,
                     token_line)
from test_start import fails
from whit.v1 import text_generation_pb2 as pb
from whit.v1 import text_generation_pb2_grpc as pb_grpc
from whitd import TIMEOUT, Stream, eventually, request
from xds.service.orca.v3 import orca_pb2, orca_pb2_grpc

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
# Starting.


@pytest.fixture
def bad_files(files, authority):
    """{what is wrong: what is said}, each made by changing the files."""
    other = authority.issue("other")
    passphrase = other.key_with(serialization.BestAvailableEncryption(b"secret"))
    return {
        "no certificate": (files.certificate.unlink, "cannot read {certificate}: No such file"),
        "no key": (files.key.unlink, "cannot read {key}: No such file"),
        "another key": (lambda: files.key.write_bytes(other.key), "{key} is not that of the first"),
        "a key with a passphrase": (lambda: files.key.write_bytes(passphrase), "a passphrase"),
        "garbage": (lambda: files.certificate.write_text("MII"), "{certificate} holds no certif"),
        "half a chain": (
            lambda: files.certificate.write_bytes(
                files.certificate.read_bytes() + other.certificate[:200]), "broken after"),
        "expired": (lambda: files.write(authority.issue("old", (-2, -1))), "CN=old in {certificate} expired at"),
        "not yet valid": (lambda: files.write(authority.issue("new", (1, 2))), "is not valid before"),
        "an expired authority in the chain": (
            lambda: files.certificate.write_bytes(
                files.certificate.read_bytes() + authority.issue("mid", (-2, -1)).certificate),
            "CN=mid in {certificate} expired at"),
        "no client authority": (lambda: files.client_ca.write_text(""), "{client_ca} holds no cert"),
        "no tokens": (files.tokens.unlink, "cannot read {tokens}: No such file"),
        "a bad line": (lambda: files.tokens.write_text("# one\nmobile t0psecret"), "{tokens}: line 2: "),
    }


@pytest.mark.parametrize("what", [
    "no certificate", "no key", "another key", "a key with a passphrase", "garbage",
    "half a chain", "expired", "not yet valid", "an expired authority in the chain",
    "no client authority", "no tokens", "a bad line"])
def test_what_cannot_be_used_is_named_at_the_start(tiny_model, files, bad_files, what):
    spoil, message = bad_files[what]
    spoil()
    error = fails(f"--model={tiny_model}", *files.tls, f"--tls-client-ca={files.client_ca}",
                  f"--auth-tokens-file={files.tokens}")
    assert "cannot serve" in error and message.format(**vars(files)) in error
    assert "t0psecret" not in error


def test_nothing_is_open_to_other_machines_unless_told(start, tiny_model, files):
    error = fails("--model=x", "--listen=0.0.0.0:50051", status=2)
    assert "0.0.0.0:50051 can be reached from other machines" in error
    assert "--tls-certificate" in error and "--insecure" in error
    start(tiny_model, "--listen=0.0.0.0:0", "--insecure").check_alive()
    server = start(tiny_model, "--listen=0.0.0.0:0", *files.tls,
                   f"--auth-tokens-file={files.tokens}")
    assert server.wait_for_event("ready")["protection"] == "tls+tokens"


# TLS.


def test_tls_keeps_out_whoever_does_not_speak_it(secured, authority):
    with tls_channel(secured.tls_address, authority) as channel:
        assert generate(channel, bearer(TOKENS["mobile"])).code == grpc.StatusCode.OK
    with tls_channel(secured.tls_address, Authority("nobody")) as channel:
        assert generate(channel, bearer(TOKENS["mobile"])).code == UNAVAILABLE
    with grpc.insecure_channel(secured.tls_address) as channel:
        assert generate(channel, bearer(TOKENS["mobile"])).code == UNAVAILABLE
    secured.check_alive()


def test_clients_must_show_a_certificate_that_is_good(start, tiny_model, files, authority):
    server = start(tiny_model, *files.tls, f"--tls-client-ca={files.client_ca}")
    assert server.wait_for_event("ready")["protection"] == "mtls"
    with tls_channel(server.address, authority, authority.issue("gateway-1")) as channel:
        assert generate(channel, request_id="shown").code == grpc.StatusCode.OK
    assert server.wait_for_event("request", id="shown")["certificate"] == "gateway-1"
    for client in (None, authority.issue("late", (-2, -1)), Authority("nobody").issue("gateway-1")):
        with tls_channel(server.address, authority, client) as channel:
            assert generate(channel).code == UNAVAILABLE


def shown_certificate(address):
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), TIMEOUT) as plain:
        with context.wrap_socket(plain) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(True)).serial_number


def test_a_certificate_is_swapped_under_load_and_no_request_fails(
        start, tiny_model, files, authority):
    server = start(tiny_model, *files.tls)
    stop = threading.Event()

    def call_again_and_again():
        results = []
        while not stop.is_set():
            # A connection of its own each.
            with tls_channel(server.address, authority,
                             options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                results.append(generate(channel).code)
        return results

    with concurrent.futures.ThreadPoolExecutor() as pool:
        callers = [pool.submit(call_again_and_again) for _ in range(3)]
        try:
            with tls_channel(server.address, authority) as kept:
                for n in range(2):
                    issued = authority.issue(f"whitd-{n}")
                    # The key comes first: until its certificate is there, the pair is bad.
                    replace(files.key, issued.key)
                    server.wait_for_event("TLS certificate not replaced")
                    assert shown_certificate(server.address) != issued.serial_number
                    replace(files.certificate, issued.certificate)
                    eventually(lambda: shown_certificate(server.address) == issued.serial_number,
                               "the new certificate is shown")
                    assert generate(kept).code == grpc.StatusCode.OK
                files.write(authority.issue("old", (-2, -1)))
                eventually(lambda: any("CN=old" in line.get("error", "") for line in server.log),
                           "the expired certificate is refused")
                assert shown_certificate(server.address) == issued.serial_number
        finally:
            stop.set()
        codes = [code for caller in callers for code in caller.result()]
    assert len(codes) > 10 and set(codes) == {grpc.StatusCode.OK}
    assert server.metric("whit_tls_certificate_expiry_timestamp_seconds") > time.time()


# Tokens.


@pytest.mark.parametrize("metadata", [
    (), bearer("x"), bearer(TOKENS["mobile"] + "0"), bearer(TOKENS["mobile"][:-1]), bearer(""),
    (("authorization", TOKENS["mobile"]),), (("authorization", f"Basic {TOKENS['mobile']}"),),
    bearer(TOKENS["mobile"]) + bearer(TOKENS["batch"]),
    (("authorization-", f"Bearer {TOKENS['mobile']}"),)])
def test_a_wrong_token_is_refused(secured, authority, metadata):
    refused = secured.metric("whit_admission_rejections_total", reason="unauthenticated")
    with tls_channel(secured.tls_address, authority) as channel:
        got = generate(channel, metadata)
    assert (got.code, got.pieces) == (UNAUTHENTICATED, [])
    assert "token" in got.details.lower()
    assert secured.metric("whit_admission_rejections_total", reason="unauthenticated") == refused + 1


def test_every_service_asks_for_a_token_but_health(secured, authority):
    def calls(channel, metadata):
        whit = pb_grpc.TextGenerationServiceStub(channel)
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        orca = orca_pb2_grpc.OpenRcaServiceStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        yield whit.GenerateStream(request("Hi", max_new_tokens=1), metadata=metadata)
        yield reflection.ServerReflectionInfo(iter([ask]), metadata=metadata)
        yield orca.StreamCoreMetrics(orca_pb2.OrcaLoadReportRequest(), metadata=metadata)
        prefix = "/whit.v1.TextGenerationService/"
        for method, made in ((prefix + "Generate", request("Hi", unary=True, max_new_tokens=1)),
                             (prefix + "Score", pb.ScoreRequest(continuation=pb.Prompt(text="Hi ho"))),
                             (prefix + "Tokenize", pb.TokenizeRequest(text="Hi")),
                             (prefix + "Detokenize", pb.DetokenizeRequest(token_ids=[1])),
                             (prefix + "GetModel", pb.GetModelRequest()),
                             (prefix + "GetCapacity", pb.GetCapacityRequest()),
                             ("/grpc.channelz.v1.Channelz/GetServers", pb.GetModelRequest()),
                             ("/no.such.Service/Method", pb.GetModelRequest())):
            yield channel.unary_stream(method)(made.SerializeToString(), metadata=metadata)

    with tls_channel(secured.tls_address, authority) as channel:
        for call in calls(channel, ()):
            with pytest.raises(grpc.RpcError):
                next(iter(call))
            assert call.code() == UNAUTHENTICATED
        *known, unknown = calls(channel, bearer(TOKENS["mobile"]))
        for call in known:
            assert next(iter(call)) is not None
            call.cancel()
        assert unknown.code() == grpc.StatusCode.UNIMPLEMENTED

        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == 1
        assert next(health.Watch(health_pb2.HealthCheckRequest())).status == 1


def test_the_log_tells_the_client_and_never_its_token(secured, authority):
    with tls_channel(secured.tls_address, authority) as channel:
        for name in (*TOKENS, *TOKENS):  # over one connection
            generate(channel, bearer(TOKENS[name]), request_id=f"of-{name}")
        generate(channel, bearer("t0psecret"))
    for name in TOKENS:
        assert secured.wait_for_event("request", id=f"of-{name}")["client"] == name
    secured.wait_for_event("request", reason="unauthenticated",
                           method="/whit.v1.TextGenerationService/GenerateStream")
    log = str(secured.log)
    assert "t0psecret" not in log and not any(token in log for token in TOKENS.values())


def test_refusals_do_not_flood_the_log(start, tiny_model, files):
    server = start(tiny_model, f"--auth-tokens-file={files.tokens}")
    with server.client() as stub:
        calls = [stub.GetModel.future(pb.GetModelRequest()) for _ in range(300)]
        assert {call.code() for call in calls} == {UNAUTHENTICATED}
    assert server.metric("whit_admission_rejections_total", reason="unauthenticated") == 300
    assert 10 <= sum(line.get("reason") == "unauthenticated" for line in server.log) < 100


def test_a_plaintext_listener_asks_for_nothing(secured):
    with grpc.insecure_channel(secured.address) as channel:
        assert generate(channel, request_id="open").code == grpc.StatusCode.OK
        assert generate(channel, bearer("x")).code == grpc.StatusCode.OK
        assert generate(channel, bearer(TOKENS["batch"]), request_id="known").code == (
            grpc.StatusCode.OK)
    assert "client" not in secured.wait_for_event("request", id="open")
    assert secured.wait_for_event("request", id="known")["client"] == "batch"


def test_tokens_work_without_tls_on_this_machine(start, tiny_model, files, tmp_path):
    server = start(tiny_model, f"--auth-tokens-file={files.tokens}",
                   f"--listen=unix:{tmp_path}/whit.sock")
    for address in server.wait_for_event("ready")["listen"].split(","):
        with grpc.insecure_channel(address) as channel:
            assert generate(channel).code == UNAUTHENTICATED
            assert generate(channel, bearer(TOKENS["mobile"])).code == grpc.StatusCode.OK


def test_tokens_are_read_again_when_they_change(start, tiny_model, files):
    server = start(tiny_model, f"--auth-tokens-file={files.tokens}")
    with grpc.insecure_channel(server.address) as channel:

        def code(token):
            return generate(channel, bearer(token)).code

        assert code("new") == UNAUTHENTICATED
        files.tokens.write_text(token_line("new", "new") + token_line("batch", TOKENS["batch"]))
        eventually(lambda: code("new") == grpc.StatusCode.OK, "the new token is known")
        assert code(TOKENS["mobile"]) == UNAUTHENTICATED
        assert code(TOKENS["batch"]) == grpc.StatusCode.OK

        files.tokens.write_text("new oops")
        eventually(lambda: code("new") and any("tokens not replaced" in line["event"]
                                               for line in server.log), "the bad file is seen")
        assert "line 1" in server.wait_for_event("tokens not replaced")["error"]
        files.tokens.unlink()
        eventually(lambda: code("new") and sum("tokens not replaced" in line["event"]
                                               for line in server.log) == 2, "that it is gone")
        assert code("new") == grpc.StatusCode.OK


def assert_client_limit(got, reason):
    assert (got.code, got.pieces) == (EXHAUSTED, [])
    assert got.trailers["whit-reason"] == reason
    assert int(got.trailers["grpc-retry-pushback-ms"]) > 0 and int(got.trailers["retry-after"]) > 0


def test_each_client_has_its_own_limits(start, slow_model, files):
    files.tokens.write_text(token_line("one", "one", "max-requests=1")
                            + token_line("short", "short", "max-queued-prompt-tokens=100")
                            + token_line("free", "free"))
    server = start(slow_model, f"--auth-tokens-file={files.tokens}", "--kv-cache-bytes=1G",
                   "--max-running=1")
    with server.client() as stub:

        def stream(token, prompt="Hi", max_new_tokens=20_000):
            # Without a deadline, which who waits would not be let in with.
            return stub.GenerateStream(
                request(prompt, max_new_tokens=max_new_tokens, ignore_eos=True),
                metadata=bearer(token))

        running = stream("one")
        next(running)
        assert_client_limit(Stream(stream("one")), "client_requests")
        for name in ("client_requests", "client_queue_prompt_tokens"):
            assert server.metric("whit_admission_rejections_total", reason=name) == (
                name == "client_requests")

        # Who must wait: the only running place is taken.
        capacity = lambda: stub.GetCapacity(pb.GetCapacityRequest(), metadata=bearer("free"))
        waiting = stream("short", prompt=[5] * 60)
        eventually(lambda: capacity().waiting_prompt_tokens == 60, "one waits")
        assert_client_limit(Stream(stream("short", prompt=[5] * 60)), "client_queue_prompt_tokens")
        other = stream("free", prompt=[5] * 500)
        eventually(lambda: capacity().waiting_prompt_tokens == 560, "others may wait")
        for call in (waiting, other, running):
            call.cancel()
        eventually(lambda: capacity().requests_running == 0, "all have gone")
        eventually(lambda: Stream(stream("one", max_new_tokens=1)).code == grpc.StatusCode.OK,
                   "the cancelled request's place is free")
        # A place is free as soon as its client knows that the request has ended.
        for _ in range(20):
            assert Stream(stream("one", max_new_tokens=1)).code == grpc.StatusCode.OK


def test_reflection_and_channelz_are_there_only_where_asked_for(start, tiny_model):
    server = start(tiny_model)
    with grpc.insecure_channel(server.address) as channel:
        for method in ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                       "/grpc.channelz.v1.Channelz/GetServers"):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(method)(b"", timeout=TIMEOUT)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


# The client `whit`.


def test_whit_talks_to_a_secured_server(secured, whit, authority, tmp_path):
    ca, token = tmp_path / "ca.pem", tmp_path / "token"
    ca.write_bytes(authority.certificate)
    token.write_text(TOKENS["mobile"] + "\n")
    to = (f"--server={secured.tls_address}", f"--tls-ca={ca}")

    def run(*flags):
        return whit(None, *flags)

    assert run("health", *to).stdout == "SERVING\n"
    assert run("health", "--wait=5s", *to, f"--token-file={token}").returncode == 0
    for command in (("generate", "Hi", "--max-new-tokens=3"), ("tokenize", "Hi"), ("model",),
                    ("capacity",), ("score", "a", "b")):
        assert run(*command, *to, f"--token-file={token}").returncode == 0
    done = run("model", *to)
    assert done.returncode == 1 and "UNAUTHENTICATED" in done.stderr

    named = run("model", *to, f"--token-file={token}", "--tls-server-name=whit.example")
    assert named.returncode == 0
    other = run("model", *to, f"--token-file={token}", "--tls-server-name=other.example")
    assert other.returncode == 1 and "other.example" in other.stderr

    for flags, message in (
            ((f"--tls-ca={tmp_path}/nowhere",), "nowhere: No such file"),
            ((f"--tls-ca={ca}", f"--tls-key={token}"), "go together"),
            ((f"--tls-certificate={ca}", f"--tls-key={token}"), "needs --tls-ca"),
            ((f"--token-file={ca}",), "not a printable")):
        done = run("model", *flags)
        assert done.returncode == 2 and message in done.stderr


def test_whit_shows_its_certificate(start, whit, tiny_model, files, authority, tmp_path):
    server = start(tiny_model, *files.tls, f"--tls-client-ca={files.client_ca}")
    mine = authority.issue("me")
    for name, content in (("me.pem", mine.certificate), ("me.key", mine.key),
                          ("ca.pem", authority.certificate)):
        (tmp_path / name).write_bytes(content)
    ca = f"--tls-ca={tmp_path}/ca.pem"
    shown = (f"--tls-certificate={tmp_path}/me.pem", f"--tls-key={tmp_path}/me.key")
    assert whit(server, "model", ca, *shown).returncode == 0
    assert whit(server, "model", ca, "--timeout=5s").returncode == 1
