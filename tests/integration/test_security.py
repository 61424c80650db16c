"""TLS, tokens, limits: who gets in, what they may do, and what whoever attacks gets."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import socket
import ssl
import threading
import time

import grpc
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from certificates import Authority, replace
from conftest import BIN_DIR
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from test_start import fails
from whit.v1 import text_generation_pb2 as pb
from whit.v1 import text_generation_pb2_grpc as pb_grpc
from whitd import TIMEOUT, Stream, Whitd, eventually, request
from xds.service.orca.v3 import orca_pb2, orca_pb2_grpc

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
TOKENS = {"mobile": "m-9a0b1c", "batch": "b-2d3e4f"}


def token_line(name, token, limits=""):
    return f"{name} sha256:{hashlib.sha256(token.encode()).hexdigest()} {limits}\n"


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture(scope="module")
def authority():
    return Authority()


class Files:
    """A server's certificate, key, client authority and tokens."""

    def __init__(self, folder, authority):
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.client_ca, self.tokens = folder / "clients.pem", folder / "tokens"
        self.write(authority.issue("whitd"))
        self.client_ca.write_bytes(authority.certificate)
        self.tokens.write_text("# who may call\n" + "".join(itertools.starmap(
            token_line, TOKENS.items())))
        self.tls = (f"--tls-certificate={self.certificate}", f"--tls-key={self.key}")

    def write(self, issued):
        replace(self.key, issued.key)
        replace(self.certificate, issued.certificate)


@pytest.fixture
def files(tmp_path, authority):
    return Files(tmp_path, authority)


def open_besides(server):
    """Has a server's own fixture methods use its plaintext listener."""
    ready = server.wait_for_event("ready")
    server.tls_address, server.address = server.address, ready["listen_plaintext"]
    return server


@pytest.fixture(scope="module")
def secured(tmp_path_factory, tiny_model, authority):
    """TLS and tokens, and a plaintext listener."""
    files = Files(tmp_path_factory.mktemp("secured"), authority)
    server = Whitd(BIN_DIR / "whitd", tiny_model, "--kv-cache-bytes=64M", *files.tls,
                   f"--auth-tokens-file={files.tokens}", "--listen-plaintext=127.0.0.1:0",
                   "--reflection", "--channelz")
    server.files = files
    yield open_besides(server)
    assert server.stop() == 0


@contextlib.contextmanager
def tls_channel(address, authority, client=None, options=()):
    credentials = grpc.ssl_channel_credentials(
        authority.certificate, client and client.key, client and client.certificate)
    with grpc.secure_channel(address, credentials, options) as channel:
        yield channel


def generate(channel, metadata=(), max_new_tokens=3, **options):
    stub = pb_grpc.TextGenerationServiceStub(channel)
    return Stream(stub.GenerateStream(
        request("Hi", max_new_tokens=max_new_tokens, ignore_eos=True, **options),
        metadata=metadata, timeout=TIMEOUT))


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
        # A place is free as soon as its request has ended.
        for _ in range(20):
            assert Stream(stream("one", max_new_tokens=1)).code == grpc.StatusCode.OK


# Limits.


class Flat:
    """At no time in here the server's memory has grown by more than `mebibytes`."""

    def __init__(self, server, mebibytes):
        self._server, self._bytes = server, mebibytes << 20

    def _peak(self):
        with open(f"/proc/{self._server.process.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

    def __enter__(self):
        with open(f"/proc/{self._server.process.pid}/clear_refs", "w") as peak:
            peak.write("5")  # starts anew from now
        self._before = self._peak()

    def __exit__(self, *error):
        if error[0] is None:
            self._server.check_alive()
            assert self._peak() - self._before < self._bytes


def test_a_message_of_100_mb_is_refused(secured, authority):
    with Flat(secured, 250), tls_channel(secured.tls_address, authority) as channel:
        data = b"x" * 100_000_000
        for method, _ in itertools.product(("Generate", "Tokenize"), range(2)):
            call = channel.unary_stream(f"/whit.v1.TextGenerationService/{method}")
            got = Stream(call(data, metadata=bearer(TOKENS["mobile"]), timeout=TIMEOUT))
            assert got.code == EXHAUSTED
            assert Stream(call(data, timeout=TIMEOUT)).code == UNAUTHENTICATED


def test_what_is_buffered_of_large_messages_is_bounded(start, tiny_model):
    server = start(tiny_model, "--max-message-bytes=1M", "--kv-cache-bytes=16M")
    with Flat(server, 200), grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream("/whit.v1.TextGenerationService/Generate")
        data = b"x" * 400_000_000
        assert Stream(call(data, timeout=TIMEOUT)).code == EXHAUSTED


def test_what_is_compressed_is_refused(secured):
    """A thousandth of what it holds would go over the wire."""
    with Flat(secured, 8), grpc.insecure_channel(
            secured.address, compression=grpc.Compression.Gzip) as channel:
        got = Stream(channel.unary_stream("/whit.v1.TextGenerationService/Generate")(
            b"\0" * 100_000_000, timeout=TIMEOUT))
        assert got.code == grpc.StatusCode.UNIMPLEMENTED and "gzip" in got.details


def test_10000_bytes_of_metadata_are_refused(secured, authority):
    """And the other calls of the connection go on."""
    with Flat(secured, 8), tls_channel(secured.tls_address, authority) as channel:
        token = bearer(TOKENS["mobile"])
        reports = orca_pb2_grpc.OpenRcaServiceStub(channel).StreamCoreMetrics(
            orca_pb2.OrcaLoadReportRequest(), metadata=token)
        next(reports)
        for _ in range(50):
            got = generate(channel, (*token, ("x", "y" * 10_000)))
            assert got.code == EXHAUSTED and "bytes of metadata; at most 8192" in got.details
        assert generate(channel, (*token, ("x", "y" * 4_000))).code == grpc.StatusCode.OK
        next(reports)
        reports.cancel()
    with grpc.insecure_channel(secured.address) as channel:
        assert generate(channel, (("x", "y" * 10_000),)).code == EXHAUSTED


class RawConnection:
    """HTTP/2 without a client's good manners."""

    def __init__(self, address):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), TIMEOUT)
        self.socket.settimeout(TIMEOUT)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.settings = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()

    def send(self):
        self.socket.sendall(self.h2.data_to_send())

    def events(self):
        """Until the server closes the connection."""
        while data := self.socket.recv(65536):
            for event in self.h2.receive_data(data):
                yield event
            self.send()


def test_a_ping_flood_is_ended(secured):
    with Flat(secured, 8):
        for _ in range(10):
            with RawConnection(secured.address) as connection:
                connection.send()
                with contextlib.suppress(ConnectionError):  # it closes while we send
                    for _ in range(10_000):
                        connection.h2.ping(b"12345678")
                        connection.send()
                with contextlib.suppress(ConnectionError):
                    for event in connection.events():
                        if isinstance(event, h2.events.ConnectionTerminated):
                            assert event.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
                            assert event.additional_data == b"too_many_pings"


def test_a_megabyte_of_metadata_is_refused(secured):
    with RawConnection(secured.address) as connection:
        connection.h2.remote_settings.acknowledge()
        connection.h2.send_headers(1, [
            (":method", "POST"), (":scheme", "http"), (":authority", "whit"),
            (":path", "/whit.v1.TextGenerationService/Generate"), ("te", "trailers"),
            ("content-type", "application/grpc"), *((f"x-{n}", "y" * 10_000) for n in range(100))])
        data = connection.h2.data_to_send()  # takes its time to encode
    with Flat(secured, 8):
        for _ in range(20):
            with RawConnection(secured.address) as connection:
                with contextlib.suppress(ConnectionError):  # it closes while we send
                    connection.socket.sendall(data)
                    connection.socket.shutdown(socket.SHUT_WR)
                    while connection.socket.recv(65536):
                        pass


def test_a_gateway_may_ping_an_idle_connection(secured):
    """Every 10 s: gRPC's own bound without calls would be two hours."""
    with RawConnection(secured.address) as connection:
        connection.send()
        connection.h2.ping(b"12345678")
        connection.send()
        answers = (event for event in connection.events()
                   if isinstance(event, h2.events.PingAckReceived))
        assert next(answers).ping_data == b"12345678"


def test_streams_of_a_connection_are_bounded(start, secured, tiny_model):
    def bound(server):
        with RawConnection(server.address) as connection:
            connection.send()
            for event in connection.events():
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    code = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
                    return event.changed_settings[code].new_value

    assert bound(secured) == 1024
    server = start(tiny_model, "--max-streams-per-connection=3")
    assert bound(server) == 3
    with server.client() as stub:  # the client holds back what is too much
        calls = [stub.Generate.future(request("Hi", unary=True, max_new_tokens=5), timeout=TIMEOUT)
                 for _ in range(12)]
        assert all(call.result().usage.completion_tokens == 5 for call in calls)


def test_noise_on_the_sockets_is_shrugged_off(secured):
    noise = [b"", b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00" + b"\xff" * 500,
             b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000]
    with Flat(secured, 8):
        for address, data in itertools.product((secured.address, secured.tls_address), noise * 20):
            host, port = address.split(":")
            with socket.create_connection((host, int(port)), TIMEOUT) as peer:
                with contextlib.suppress(ConnectionError):
                    peer.sendall(data)
                    peer.shutdown(socket.SHUT_WR)
                    peer.settimeout(TIMEOUT)
                    while peer.recv(65536):
                        pass


def test_reflection_and_channelz_are_there_only_where_asked_for(start, tiny_model):
    server = start(tiny_model)
    with grpc.insecure_channel(server.address) as channel:
        for method in ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                       "/grpc.channelz.v1.Channelz/GetServers"):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(method)(b"", timeout=TIMEOUT)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


# Tracing.


TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_call_is_found_by_its_trace_and_by_its_id(secured):
    with grpc.insecure_channel(secured.address) as channel:
        stub = pb_grpc.TextGenerationServiceStub(channel)

        def call(made, *metadata):
            done = stub.GenerateStream(made, metadata=metadata, timeout=TIMEOUT)
            Stream(done)
            return dict(done.initial_metadata())["x-request-id"]

        made = request("Hi", max_new_tokens=3, ignore_eos=True)
        traceparent = ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")
        line = secured.wait_for_event("request", id=call(made, traceparent))
        assert (line["trace_id"], line["parent_id"]) == (TRACE_ID, PARENT_ID)
        assert line["ttft_s"] >= line["prefill_s"] > 0
        for bad in (f"00-{'0' * 32}-{PARENT_ID}-01", "x" * 55, ""):
            line = secured.wait_for_event("request", id=call(made, ("traceparent", bad)))
            assert "trace_id" not in line

        # Whoever names a request: the message, or else a gateway's header.
        assert call(made, ("x-request-id", "from-gateway")) == "from-gateway"
        secured.wait_for_event("request", id="from-gateway")
        assert call(made, ("x-request-id", "x" * 200)) != "x" * 200
        named = request("Hi", max_new_tokens=1, request_id="from-client")
        assert call(named, ("x-request-id", "from-gateway")) == "from-client"
        # In a header of its own gRPC would see the beginning of an answer, and not try again.
        refused = stub.GenerateStream(request("Hi", max_new_tokens=0), timeout=TIMEOUT)
        name = Stream(refused).trailers["x-request-id"]
        assert refused.initial_metadata() == ()
        assert secured.wait_for_event("request", id=name)["reason"] == "invalid"
        _, unary = stub.GetModel.with_call(pb.GetModelRequest(), metadata=[traceparent])
        line = secured.wait_for_event("request", id=dict(unary.initial_metadata())["x-request-id"])
        assert (line["method"], line["trace_id"]) == ("GetModel", TRACE_ID)

        reports = orca_pb2_grpc.OpenRcaServiceStub(channel).StreamCoreMetrics(
            orca_pb2.OrcaLoadReportRequest(), metadata=[traceparent])
        next(reports)
        reports.cancel()
        line = secured.wait_for_event("request", method="StreamCoreMetrics", trace_id=TRACE_ID)
        assert (line["code"], line["reason"]) == ("CANCELLED", "cancelled")


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
