"""A call's log line ties it to its trace, and its id to whoever asks."""

import grpc
from whit.v1 import text_generation_pb2 as pb
from whit.v1 import text_generation_pb2_grpc as pb_grpc
from whitd import TIMEOUT, Stream, request
from xds.service.orca.v3 import orca_pb2, orca_pb2_grpc

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_call_is_found_by_its_trace_and_by_its_id(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.TextGenerationServiceStub(channel)

        def call(made, *metadata):
            done = stub.GenerateStream(made, metadata=metadata, timeout=TIMEOUT)
            Stream(done)
            return dict(done.initial_metadata())["x-request-id"]

        made = request("Hi", max_new_tokens=3, ignore_eos=True)
        traceparent = ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")
        line = server.wait_for_event("request", id=call(made, traceparent))
        assert (line["trace_id"], line["parent_id"]) == (TRACE_ID, PARENT_ID)
        assert line["ttft_s"] >= line["prefill_s"] > 0
        for bad in (f"00-{'0' * 32}-{PARENT_ID}-01", "x" * 55, ""):
            line = server.wait_for_event("request", id=call(made, ("traceparent", bad)))
            assert "trace_id" not in line

        # Whoever names a request: the message, or else a gateway's header.
        assert call(made, ("x-request-id", "from-gateway")) == "from-gateway"
        server.wait_for_event("request", id="from-gateway")
        assert call(made, ("x-request-id", "x" * 200)) != "x" * 200
        named = request("Hi", max_new_tokens=1, request_id="from-client")
        assert call(named, ("x-request-id", "from-gateway")) == "from-client"
        # In a header of its own gRPC would see the beginning of an answer, and not try again.
        refused = stub.GenerateStream(request("Hi", max_new_tokens=0), timeout=TIMEOUT)
        name = Stream(refused).trailers["x-request-id"]
        assert refused.initial_metadata() == ()
        assert server.wait_for_event("request", id=name)["reason"] == "invalid"
        _, unary = stub.GetModel.with_call(pb.GetModelRequest(), metadata=[traceparent])
        line = server.wait_for_event("request", id=dict(unary.initial_metadata())["x-request-id"])
        assert (line["method"], line["trace_id"]) == ("GetModel", TRACE_ID)

        reports = orca_pb2_grpc.OpenRcaServiceStub(channel).StreamCoreMetrics(
            orca_pb2.OrcaLoadReportRequest(), metadata=[traceparent])
        next(reports)
        reports.cancel()
        line = server.wait_for_event("request", method="StreamCoreMetrics", trace_id=TRACE_ID)
        assert (line["code"], line["reason"]) == ("CANCELLED", "cancelled")
