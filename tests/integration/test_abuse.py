"""What whoever attacks gets: a clear refusal, of a server whose memory stays bounded."""

import contextlib
import itertools
import socket

import grpc
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from secured import EXHAUSTED, TOKENS, UNAUTHENTICATED, bearer, generate, tls_channel
from whitd import TIMEOUT, Stream, request
from xds.service.orca.v3 import orca_pb2, orca_pb2_grpc


# MiB that gRPC may come to hold of what it reads: 64 by its quota, and what it does not count.
BUFFERED = 100


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


def flood_with_pings(server, connections):
    for _ in range(connections):
        with RawConnection(server.address) as connection:
            connection.send()
            with contextlib.suppress(ConnectionError):  # it closes while we send
                for _ in range(10_000):
                    connection.h2.ping(b"12345678")
                    connection.send()
            # h2 takes it amiss if answers to earlier pings come after the GOAWAY.
            with contextlib.suppress(ConnectionError, h2.exceptions.ProtocolError):
                for event in connection.events():
                    if isinstance(event, h2.events.ConnectionTerminated):
                        assert event.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
                        assert event.additional_data == b"too_many_pings"


def test_a_ping_flood_is_ended(secured):
    with Flat(secured, BUFFERED):
        flood_with_pings(secured, 60)


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
