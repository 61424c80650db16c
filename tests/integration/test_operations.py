"""What an operator looks at: health, reflection, metrics, the log."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from whit.v1 import text_generation_pb2 as pb
from whitd import Stream, request

SERVICE = "whit.v1.TextGenerationService"


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def test_health_is_known_for_the_server_and_the_service(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_and_describes_the_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asks = [reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="grpc.health.v1.Health")]
    listed, service, health = stub.ServerReflectionInfo(iter(asks))
    names = {entry.name for entry in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
            "xds.service.orca.v3.OpenRcaService"} <= names
    assert service.file_descriptor_response.file_descriptor_proto
    assert health.file_descriptor_response.file_descriptor_proto


def test_unknown_methods_are_unimplemented(channel):
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"/{SERVICE}/Dream")(b"")
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


NAMES = {
    "whit_kv_cache_capacity_bytes", "whit_kv_cache_used_bytes", "whit_kv_cache_reserved_bytes",
    "whit_kv_cache_reclaimable_bytes", "whit_kv_cache_reservable_bytes",
    "whit_kv_cache_rung_bits_per_element", "whit_kv_cache_ceiling_bits_per_element",
    "whit_controller_pressure", "whit_admission_utilization_ratio", "whit_requests_running_limit",
    "whit_admission_queue_requests_limit", "whit_admission_queue_prompt_tokens_limit",
    "whit_prefix_cache_prefixes", "whit_engine_phase_seconds_total", "whit_health_serving",
    "whit_kv_cache_fp16_equivalent_bytes", "whit_kv_cache_saved_bytes",
    "whit_kv_cache_bits_per_element", "whit_kv_cache_tokens", "whit_controller_decisions_total",
    "whit_controller_price", "whit_demotions_total", "whit_admission_headroom_tokens",
    "whit_admission_estimated_wait_seconds", "whit_admission_queue_requests", "whit_admission_queue_prompt_tokens",
    "whit_admission_rejections_total", "whit_requests_running", "whit_requests_waiting",
    "whit_requests_total", "whit_prefix_cache_query_tokens_total",
    "whit_prefix_cache_hit_tokens_total", "whit_prompt_tokens_total", "whit_generation_tokens_total",
    "whit_engine_step_seconds_count", "whit_time_to_first_token_seconds_count",
    "whit_inter_token_latency_seconds_count", "whit_request_duration_seconds_count",
    "whit_request_queue_seconds_count", "whit_build_info", "whit_model_info",
    "process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes",
    "process_start_time_seconds", "process_open_fds", "process_max_fds", "process_threads",
}


def test_metrics_are_all_there_and_described(server):
    metrics = server.metrics()
    assert NAMES <= {name for name, _ in metrics}
    text = server.metrics_text()
    for line in text.splitlines():
        if line.startswith("# TYPE whit_"):
            assert f"# HELP {line.split()[2]} " in text


def test_histogram_edges_are_those_of_the_interface(server):
    edges = {}
    for name, labels in server.metrics():
        if name.endswith("_bucket"):
            edges.setdefault(name, []).append(float(dict(labels)["le"]))
    assert sorted(edges["whit_time_to_first_token_seconds_bucket"])[:-1] == [
        .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160]
    assert sorted(edges["whit_inter_token_latency_seconds_bucket"])[:-1] == [
        .001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5]


def test_metrics_count_what_happened(server):
    def counts():
        return {
            "prompt": server.metric("whit_prompt_tokens_total"),
            "generated": server.metric("whit_generation_tokens_total"),
            "length": server.metric("whit_requests_total", finish_reason="length"),
            "ttft": server.metric("whit_time_to_first_token_seconds_count"),
            "itl": server.metric("whit_inter_token_latency_seconds_count"),
            "duration": server.metric("whit_request_duration_seconds_count"),
            "queue": server.metric("whit_request_queue_seconds_count"),
            "invalid": server.metric("whit_admission_rejections_total", reason="invalid"),
        }

    before = counts()
    with server.client() as stub:
        Stream(stub.GenerateStream(request([5] * 30, max_new_tokens=12, ignore_eos=True)))
        Stream(stub.GenerateStream(request([5] * 30, max_new_tokens=0)))
    after = counts()
    assert {name: after[name] - before[name] for name in before} == {
        "prompt": 30, "generated": 12, "length": 1, "ttft": 1, "itl": 11, "duration": 1,
        "queue": 1, "invalid": 1}


def test_phases_make_up_the_steps(server):
    with server.client() as stub:
        Stream(stub.GenerateStream(request([5] * 30, max_new_tokens=12, ignore_eos=True)))
    server.wait_until_empty()
    metrics = server.metrics()
    phases = {dict(labels)["phase"]: value for (name, labels), value in metrics.items()
              if name == "whit_engine_phase_seconds_total"}
    assert phases.keys() == {"matmul", "attention", "quantize", "logits", "relief", "sampling",
                             "other"}
    assert min(phases[name] for name in ("matmul", "attention", "logits")) > 0
    assert sum(phases.values()) == pytest.approx(server.metric("whit_engine_step_seconds_sum"))


def test_the_start_time_is_told_the_same_each_time(server):
    """Else it would look like restarts."""
    assert len({server.metric("process_start_time_seconds") for _ in range(5)}) == 1


def test_metrics_and_get_capacity_agree(server):
    with server.client() as stub:  # leaves a cached prefix
        Stream(stub.GenerateStream(request([5] * 300, max_new_tokens=1)))
    server.wait_until_empty()
    now = server.capacity()
    assert now.kv_cache_reclaimable_bytes > 0 and now.kv_cache_fp16_equivalent_bytes > 0
    same = {
        "kv_cache_capacity_bytes": now.kv_cache_capacity_bytes,
        "kv_cache_reserved_bytes": now.kv_cache_reserved_bytes,
        "kv_cache_reclaimable_bytes": now.kv_cache_reclaimable_bytes,
        "kv_cache_fp16_equivalent_bytes": now.kv_cache_fp16_equivalent_bytes,
        "kv_cache_saved_bytes": now.kv_cache_saved_bytes,
        "kv_cache_bits_per_element": now.kv_cache_mean_bits,
        "controller_price": now.controller_price,
        "admission_queue_requests": now.requests_waiting,
        "admission_queue_prompt_tokens": now.waiting_prompt_tokens,
        "admission_estimated_wait_seconds": now.estimated_wait_seconds,
        "requests_running": now.requests_running,
        "requests_waiting": now.requests_waiting,
        "requests_running_limit": now.max_running_requests,
        "admission_queue_requests_limit": now.max_waiting_requests,
        "admission_queue_prompt_tokens_limit": now.max_waiting_prompt_tokens,
    }
    assert {name: server.metric(f"whit_{name}") for name in same} == same
    for precision, tokens in (("floor", now.headroom_tokens_floor),
                              ("current", now.headroom_tokens_current)):
        assert server.metric("whit_admission_headroom_tokens", precision=precision) == tokens


def test_model_and_build_are_told_by_labels(server):
    labels = {name: dict(values) for name, values in server.metrics()
              if name in ("whit_model_info", "whit_build_info")}
    with server.client() as stub:
        model = stub.GetModel(pb.GetModelRequest())
    assert labels["whit_build_info"]["version"] == model.server_version
    assert labels["whit_model_info"]["name"] == model.name
    assert labels["whit_model_info"]["context_length"] == str(model.context_length)


def test_each_request_has_one_line_in_the_log(server):
    with server.client() as stub:
        Stream(stub.GenerateStream(request([5] * 20, max_new_tokens=6, ignore_eos=True,
                                           request_id="logged-1")))
        Stream(stub.GenerateStream(request("hi", temperature=-1, request_id="logged-2")))
    good = server.wait_for_event("request", id="logged-1")
    assert good["method"] == "GenerateStream"
    assert good["code"] == "OK" and good["reason"] == "length"
    assert (good["prompt_tokens"], good["completion_tokens"]) == (20, 6)
    assert good["kv_bits"] >= 16 and good["kv_bytes"] > 0
    assert good["duration_s"] >= good["prefill_s"] + good["decode_s"]
    assert good["peer"].startswith("ipv4:127.0.0.1:")
    bad = server.wait_for_event("request", id="logged-2")
    assert bad["code"] == "INVALID_ARGUMENT" and bad["reason"] == "invalid"
    assert "temperature is -1" in bad["error"]
    for name in ("logged-1", "logged-2"):
        assert sum(line.get("id") == name for line in server.log) == 1


def test_the_queue_is_as_long_as_the_cache_unless_told_otherwise(server, start, tiny_model):
    now = server.capacity()
    assert now.max_waiting_prompt_tokens == server.metric(
        "whit_admission_headroom_tokens", precision="floor")
    told = start(tiny_model, "--max-queue-prompt-tokens=7")
    assert told.capacity().max_waiting_prompt_tokens == 7
