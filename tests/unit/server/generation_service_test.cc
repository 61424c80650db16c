// The service behind its listeners while it has no model yet; tests/integration has the rest.
#include "server/generation_service.h"

#include <grpcpp/create_channel.h>

#include <memory>
#include <string>

#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include "server/grpc_server.h"
#include "server/metrics/load_report_service.h"
#include "server/vllm/vllm_service.h"

namespace whit {
namespace {

using grpc::health::v1::HealthCheckResponse;

class LoadingServerTest : public ::testing::Test {
 protected:
  LoadingServerTest() {
    ServerOptions options;
    options.listen = {"127.0.0.1:0"};
    absl::StatusOr<GrpcServer> started =
        StartGrpcServer(options, {}, {&service_, &vllm_service_, &load_reports_});
    EXPECT_TRUE(started.ok()) << started.status();
    grpc_ = *std::move(started);
    channel_ = grpc::CreateChannel(grpc_.addresses[0], grpc::InsecureChannelCredentials());
    stub_ = v1::TextGenerationService::NewStub(channel_);
  }
  ~LoadingServerTest() override { grpc_.server->Shutdown(); }

  HealthCheckResponse::ServingStatus Health(const std::string& name) {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    HealthCheckResponse response;
    grpc::ClientContext rpc;
    EXPECT_TRUE(grpc::health::v1::Health::NewStub(channel_)->Check(&rpc, request, &response).ok());
    return response.status();
  }

  Logger logger_{LogLevel::kError, LogFormat::kText};
  Metrics metrics_;
  ActiveCalls active_calls_;
  ServiceContext context_{.logger = logger_, .metrics = metrics_, .active_calls = active_calls_};
  GenerationService service_{context_};
  VllmService vllm_service_{context_};
  LoadReportService load_reports_{context_};
  GrpcServer grpc_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::TextGenerationService::Stub> stub_;
};

void ExpectLoading(const grpc::Status& status, const grpc::ClientContext& rpc) {
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the model is being loaded");
  const auto& trailers = rpc.GetServerTrailingMetadata();
  const auto reason = trailers.find("whit-reason");
  ASSERT_NE(reason, trailers.end());
  EXPECT_EQ(std::string(reason->second.data(), reason->second.size()), "loading");
  EXPECT_EQ(trailers.count("retry-after"), 1u);
  EXPECT_EQ(trailers.count("grpc-retry-pushback-ms"), 1u);
}

TEST_F(LoadingServerTest, EveryMethodIsUnavailable) {
  {
    grpc::ClientContext rpc;
    const auto reader = stub_->GenerateStream(&rpc, v1::GenerateStreamRequest());
    v1::GenerateStreamResponse piece;
    EXPECT_FALSE(reader->Read(&piece));
    ExpectLoading(reader->Finish(), rpc);
  }
  {
    grpc::ClientContext rpc;
    v1::GenerateResponse response;
    ExpectLoading(stub_->Generate(&rpc, v1::GenerateRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    v1::ScoreResponse response;
    ExpectLoading(stub_->Score(&rpc, v1::ScoreRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    v1::TokenizeResponse response;
    ExpectLoading(stub_->Tokenize(&rpc, v1::TokenizeRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    v1::DetokenizeResponse response;
    ExpectLoading(stub_->Detokenize(&rpc, v1::DetokenizeRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    v1::GetModelResponse response;
    ExpectLoading(stub_->GetModel(&rpc, v1::GetModelRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    v1::GetCapacityResponse response;
    ExpectLoading(stub_->GetCapacity(&rpc, v1::GetCapacityRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    const auto reader =
        xds::service::orca::v3::OpenRcaService::NewStub(channel_)->StreamCoreMetrics(
            &rpc, xds::service::orca::v3::OrcaLoadReportRequest());
    xds::data::orca::v3::OrcaLoadReport report;
    EXPECT_FALSE(reader->Read(&report));
    ExpectLoading(reader->Finish(), rpc);
  }
}

TEST_F(LoadingServerTest, EveryMethodOfVllmIsUnavailableButHealthCheck) {
  namespace vllm = ::vllm::grpc::engine;
  const auto stub = VllmEngine::NewStub(channel_);
  {
    grpc::ClientContext rpc;
    const auto reader = stub->Generate(&rpc, vllm::GenerateRequest());
    vllm::GenerateResponse piece;
    EXPECT_FALSE(reader->Read(&piece));
    ExpectLoading(reader->Finish(), rpc);
  }
  {
    grpc::ClientContext rpc;
    const auto reader = stub->GetTokenizer(&rpc, vllm::GetTokenizerRequest());
    vllm::GetTokenizerChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    ExpectLoading(reader->Finish(), rpc);
  }
  {
    grpc::ClientContext rpc;
    vllm::AbortResponse response;
    ExpectLoading(stub->Abort(&rpc, vllm::AbortRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    vllm::GetModelInfoResponse response;
    ExpectLoading(stub->GetModelInfo(&rpc, vllm::GetModelInfoRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    vllm::GetServerInfoResponse response;
    ExpectLoading(stub->GetServerInfo(&rpc, vllm::GetServerInfoRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    vllm::GetLoadsResponse response;
    ExpectLoading(stub->GetLoads(&rpc, vllm::GetLoadsRequest(), &response), rpc);
  }
  {
    grpc::ClientContext rpc;
    vllm::HealthCheckResponse response;
    EXPECT_TRUE(stub->HealthCheck(&rpc, vllm::HealthCheckRequest(), &response).ok());
    EXPECT_FALSE(response.healthy());
    EXPECT_EQ(response.message(), "the model is being loaded");
  }
}

TEST_F(LoadingServerTest, HealthFollowsSetServing) {
  const std::string services[] = {"", v1::TextGenerationService::service_full_name(),
                                  VllmEngine::service_full_name()};
  for (const std::string& service : services) {
    EXPECT_EQ(Health(service), HealthCheckResponse::NOT_SERVING) << service;
  }
  SetServing(*grpc_.server, true);
  for (const std::string& service : services) {
    EXPECT_EQ(Health(service), HealthCheckResponse::SERVING) << service;
  }
}

TEST_F(LoadingServerTest, AnAddressThatIsTakenIsNamed) {
  ServerOptions options;
  options.listen = {"127.0.0.1:0", grpc_.addresses[0]};
  GenerationService other(context_);
  const absl::StatusOr<GrpcServer> started = StartGrpcServer(options, {}, {&other});
  EXPECT_EQ(started.status(), absl::UnavailableError("cannot listen on " + grpc_.addresses[0] +
                                                     ": Address already in use"));
}

}  // namespace
}  // namespace whit
