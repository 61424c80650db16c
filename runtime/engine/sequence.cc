#include "runtime/engine/sequence.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "controller/rung_choice.h"

namespace whit {
namespace {

int ExplainedTokens(const Request& request) {
  return request.explain ? static_cast<int>(request.prompt.size() + request.max_new_tokens) : 0;
}

}  // namespace

Sequence::Sequence(QueuedRequest queued, const ModelConfig& model, PageTable kv,
                   const Tokenizer& tokenizer, const PriceCurve& prices, bool server_has_target,
                   absl::Time started)
    : queued_(std::move(queued)),
      model_(model),
      tokenizer_(tokenizer),
      kv_(std::move(kv)),
      policy_(queued_.policy),
      price_(request().kv_policy, request().kv_target_bits, model, prices, server_has_target,
             ExplainedTokens(request())),
      cached_tokens_(kv_.num_tokens()),
      signals_(queued_.policy->needs(), model.num_layers, model.num_kv_heads, cached_tokens_),
      tokens_(std::move(queued_.request.prompt)),
      prompt_tokens_(tokens_.size()),
      sampler_(request().sampling, tokens_),
      stop_matcher_(request().stop),
      started_(started) {}

absl::Span<const int32_t> Sequence::reusable_tokens() const {
  auto tokens = static_cast<size_t>(kv_.num_tokens());
  // Generated and scored tokens run with finer activations than a prompt. At FP16 a cached prefix
  // gives what computing it would, bit for bit; where keys and values are quantized it does not
  // anyway, because it begins with none of its tokens in the ring.
  if (request().kv_policy.kind == PrecisionPolicySpec::Kind::kFp16) {
    tokens = std::min(tokens, prompt_tokens_ - request().score_tokens);
  }
  return absl::MakeConstSpan(tokens_).first(tokens);
}

SequenceView Sequence::view() const {
  if (generated_tokens() > 0) return {.decoding = true};
  const int run = kv_.num_tokens();
  const int prompt = static_cast<int>(prompt_tokens_);
  if (!scores()) return {.prompt_tokens = prompt - run};
  // Nothing comes after the last token: it is scored by the row before it and need not run.
  const int left = prompt - 1 - run;
  return {.prompt_tokens = left, .scored_tokens = std::min(left, request().score_tokens - 1)};
}

ForwardSlice Sequence::NextSlice(int num_tokens, ForwardSlice::Logits logits) {
  const SequenceView left = view();
  const int first = kv_.num_tokens();
  // Scored tokens run as generated ones do, so that both get the same log-probabilities.
  const bool scored = scores() && left.scored_tokens == left.prompt_tokens;
  return {.tokens = absl::MakeConstSpan(tokens_).subspan(first, num_tokens),
          .first_position = first,
          .kv = &kv_,
          .policy = &policy_,
          .price = price_.price(),
          .decisions = &price_.decisions(),
          .signals = &signals_,
          .activations = left.decoding || scored ? ActivationFormat::kInt16 : PromptActivations(),
          .prompt_continues = num_tokens < left.prompt_tokens,
          .logits = logits};
}

TokenOutput Sequence::ReadLogits(int position, absl::Span<const float> logits,
                                 SamplerScratch& scratch) {
  if (scores()) {
    return DescribeToken(logits, tokens_[position + 1], request().logprobs, scratch);
  }
  const int32_t id = sampler_.Next(logits, scratch);
  if (request().logprobs < 0) return {.id = id};
  return DescribeToken(logits, id, request().logprobs, scratch);
}

void Sequence::Append(absl::Span<TokenOutput> outputs, absl::Time now) {
  undelivered_tokens_.insert(undelivered_tokens_.end(), std::make_move_iterator(outputs.begin()),
                             std::make_move_iterator(outputs.end()));
  if (scores()) {
    if (view().prompt_tokens == 0) End(FinishReason::kStop, absl::OkStatus());
    return;
  }
  for (const TokenOutput& output : outputs) {
    if (generated_tokens() == 0) first_token_ = now;
    last_token_ = now;
    tokens_.push_back(output.id);
    const bool last = EndsGeneration(output.id);
    if (!last && !tokenizer_.IsSpecial(output.id)) AppendText(tokenizer_.TokenBytes(output.id));
    if (last || stop_string_found_) {
      End(FinishReason::kStop, absl::OkStatus());
    } else if (generated_tokens() == request().max_new_tokens) {
      End(FinishReason::kLength, absl::OkStatus());
    }
  }
}

bool Sequence::EndsGeneration(int32_t token) const {
  const std::vector<int32_t>& stops = request().stop_token_ids;
  return (tokenizer_.IsEndOfGeneration(token) && !request().ignore_eos) ||
         std::find(stops.begin(), stops.end(), token) != stops.end();
}

void Sequence::AppendText(std::string_view bytes) {
  StopMatcher::Result result = stop_matcher_.Push(characters_.Push(bytes));
  undelivered_text_ += result.text;
  stop_string_found_ = result.stopped;
}

void Sequence::Deliver() {
  if (undelivered_tokens_.empty() && undelivered_text_.empty()) return;
  queued_.sink->Put(std::exchange(undelivered_tokens_, {}), std::exchange(undelivered_text_, {}));
}

void Sequence::End(FinishReason reason, absl::Status status) {
  ended_ = true;
  finish_reason_ = reason;
  status_ = std::move(status);
  if (stop_string_found_) return;
  // Text held back for a character or a stop string that can no longer come.
  StopMatcher::Result result = stop_matcher_.Push(characters_.Flush());
  undelivered_text_ += result.text;
  if (!result.stopped) undelivered_text_ += stop_matcher_.Flush();
}

Completion Sequence::MakeCompletion(absl::Time now) const {
  Completion completion = {
      .reason = finish_reason_,
      .status = status_,
      .prompt_tokens = static_cast<int>(prompt_tokens_),
      .cached_tokens = cached_tokens_,
      .completion_tokens = generated_tokens(),
      .kv = MeasureKv(),
      .precision = request().explain ? Explain() : std::vector<TokenPrecision>(),
      .queue_time = started_ - queued_.submitted,
      .prefill_time = now - started_,
      .time_to_first_token = first_token_ - queued_.submitted};
  if (generated_tokens() > 0) {
    completion.prefill_time = first_token_ - started_;
    completion.decode_time = last_token_ - first_token_;
  }
  return completion;
}

KvUsage Sequence::MeasureKv() const {
  const PageTable::Usage held = kv_.usage();
  const size_t elements = kv_.num_tokens() * model_.kv_elements_per_token();
  KvUsage usage = {.true_bytes = held.page_bytes + held.metadata_bytes,
                   .fp16_equivalent_bytes = elements * sizeof(uint16_t),
                   .bytes_by_rung = held.bytes_by_rung};
  if (elements > 0) {
    usage.mean_bits = 8 * static_cast<double>(usage.true_bytes) / static_cast<double>(elements);
  }
  const double lists = model_.num_layers * model_.num_kv_heads;
  for (int i = 0; i < kNumRungs; ++i) {
    usage.tokens_by_rung[i] = static_cast<double>(held.tokens_by_rung[i]) / lists;
  }
  return usage;
}

std::vector<TokenPrecision> Sequence::Explain() const {
  const RecentRing& ring = kv_.ring();
  std::vector<TokenPrecision> tokens;
  for (int position = 0; position < kv_.num_tokens(); ++position) {
    double bits = price_.decisions().MeanBits(position, model_.head_dim);
    // What was not decided here lies where it was put, unless it came with its decisions.
    if (position < kTileTokens) {
      bits = PackedBits(ring.sink_rung, model_.head_dim);
    } else if (bits == 0 && position >= cached_tokens_) {
      bits = PackedBits(ring.rung, model_.head_dim);
    }
    tokens.push_back({.id = tokens_[position], .bits = static_cast<float>(bits)});
  }
  return tokens;
}

Completion CompletionWithoutRunning(const QueuedRequest& queued, FinishReason reason,
                                    absl::Status status, absl::Time now) {
  return {.reason = reason,
          .status = std::move(status),
          .prompt_tokens = static_cast<int>(queued.request.prompt.size()),
          .queue_time = now - queued.submitted,
          .time_to_first_token = absl::InfiniteDuration()};
}

}  // namespace whit
