"""What load balancers are told: ORCA's trailers and its service, read as a client does."""

import asyncio

import grpc
import pytest
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from whit.v1 import text_generation_pb2 as pb
from whitd import TIMEOUT, eventually, request
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport
from xds.service.orca.v3 import orca_pb2, orca_pb2_grpc

SERVICE = "/whit.v1.TextGenerationService/"


def call(server, method, message):
    """The status of a call and its load report.

    By grpclib: gRPC's own libraries keep this trailer to their load balancers.
    """
    types = {"GenerateStream": pb.GenerateStreamResponse, "Generate": pb.GenerateResponse,
             "Score": pb.ScoreResponse}
    host, port = server.address.split(":")

    async def run():
        method_of = UnaryStreamMethod if method == "GenerateStream" else UnaryUnaryMethod
        channel = Channel(host, int(port))
        stub = method_of(channel, SERVICE + method, type(message), types[method])
        status = Status.OK
        async with channel, stub.open(timeout=TIMEOUT) as rpc:
            await rpc.send_message(message, end=True)
            try:
                while await rpc.recv_message() is not None:
                    pass
                await rpc.recv_trailing_metadata()
            except GRPCError as error:
                status = error.status
        # An error may come with the headers alone, which are then the trailers too.
        trailers = rpc.trailing_metadata or rpc.initial_metadata
        return status, OrcaLoadReport.FromString(trailers["endpoint-load-metrics-bin"])

    return asyncio.run(run())


@pytest.fixture
def reports():
    """reports(server) subscribes to a server's load."""
    channels = []

    def subscribe(server):
        channels.append(grpc.insecure_channel(server.address))
        ask = orca_pb2.OrcaLoadReportRequest()
        ask.report_interval.FromMilliseconds(500)
        return orca_pb2_grpc.OpenRcaServiceStub(channels[-1]).StreamCoreMetrics(
            ask, timeout=TIMEOUT)

    yield subscribe
    for channel in channels:
        channel.close()


def test_every_call_that_ran_has_a_report(server):
    once = dict(max_new_tokens=20, ignore_eos=True)
    score = pb.ScoreRequest()
    score.context.text, score.continuation.text = "Once", " upon"
    seen = []
    for method, message in (("GenerateStream", request("Once", **once)),
                            ("Generate", request("Once", unary=True, **once)), ("Score", score)):
        status, report = call(server, method, message)
        assert status == Status.OK
        seen.append(report)
    # Its own load is in each, though nothing runs any more.
    assert all(0 < report.application_utilization < 1 for report in seen)
    assert all(report.named_metrics["requests_running"] == 0 for report in seen)
    assert all(report.rps_fractional > 0 and report.eps == 0 for report in seen)
    now = server.capacity()
    assert seen[-1].named_metrics["admission_headroom_tokens"] == now.headroom_tokens_floor
    assert set(seen[-1].utilization) == {"kv_cache_reserved", "kv_cache_used", "requests_running"}


def test_a_bad_request_is_no_error_of_the_server(server):
    status, report = call(server, "GenerateStream", request("Once", max_new_tokens=0))
    assert (status, report.eps) == (Status.INVALID_ARGUMENT, 0)


def test_a_full_server_says_that_it_is_overloaded(start, slow_model, reports):
    server = start(slow_model, "--kv-cache-bytes=1G", "--max-running=1", "--max-queue-requests=1")
    with server.client() as stub:
        calls = []
        for waiting in (0, 1):
            calls.append(stub.GenerateStream(
                request("Go on", max_new_tokens=20_000, ignore_eos=True)))
            eventually(lambda: server.capacity().requests_waiting == waiting, "it is in")
            next(calls[0])
        status, report = call(server, "GenerateStream", request("Too much", max_new_tokens=1))
        assert status == Status.RESOURCE_EXHAUSTED
        assert report.eps > 0
        assert report.named_metrics["requests_waiting"] == 1
        assert report.utilization["requests_running"] == 1
        assert 0 < report.utilization["kv_cache_used"] < 1
        # Asked for twice what it can: the mean over the last seconds goes there.
        stream = reports(server)
        assert any(report.application_utilization > 1.5 for report in stream)
        for running in calls:
            running.cancel()
        assert any(report.application_utilization < 0.5 for report in stream)
        stream.cancel()


def test_reports_come_on_and_on_and_end_with_their_client_or_the_server(
        start, tiny_model, reports):
    server = start(tiny_model)
    stream, other = reports(server), reports(server)
    for _ in range(3):
        report = next(stream)
        assert report.application_utilization == 0
        assert report.named_metrics["admission_headroom_tokens"] > 0
    stream.cancel()
    next(other)
    assert server.stop() == 0
    with pytest.raises(grpc.RpcError) as error:
        while True:
            next(other)
    assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
