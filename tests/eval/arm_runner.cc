#include "tests/eval/arm_runner.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/eval/naive_rounding.h"

namespace whit::eval {
namespace {

double BytesPerToken(Rung rung, int head_dim) {
  return static_cast<double>(PageBytes(rung, head_dim)) / kTileTokens;
}

constexpr double kMemoryAtOnce = 4e9;

bool HasTarget(absl::Span<const int32_t> targets) {
  return std::any_of(targets.begin(), targets.end(),
                     [](int32_t target) { return target != Sequence::kNotScored; });
}

// As the arm counts it.
PageTable::Usage UsageOf(const PageTable& table, const Arm& arm) {
  PageTable::Usage usage = table.usage();
  if (!arm.naive_rung.has_value()) return usage;
  const auto fp16 = static_cast<size_t>(Rung::kFp16), rung = static_cast<size_t>(*arm.naive_rung);
  const int head_dim = table.pool().head_dim();
  usage.page_bytes =
      usage.page_bytes / PageBytes(Rung::kFp16, head_dim) * PageBytes(*arm.naive_rung, head_dim);
  usage.bytes_by_rung[rung] = usage.page_bytes;
  usage.bytes_by_rung[fp16] = 0;
  usage.tokens_by_rung[rung] = std::exchange(usage.tokens_by_rung[fp16], 0);
  return usage;
}

}  // namespace

void KvFootprint::AddStep(const PageTable& table, const Arm& arm, int tokens_of_step,
                          const Shape& shape) {
  const PageTable::Usage usage = UsageOf(table, arm);
  const double elements = 2.0 * shape.lists * shape.head_dim * table.num_tokens();
  byte_steps_ += tokens_of_step * static_cast<double>(usage.page_bytes + usage.metadata_bytes);
  element_steps_ += tokens_of_step * elements;
}

double KvFootprint::AddEnd(const PageTable& table, const Arm& arm, const Shape& shape) {
  const PageTable::Usage usage = UsageOf(table, arm);
  const int tokens = table.num_tokens();
  const auto bytes = static_cast<double>(usage.page_bytes + usage.metadata_bytes);
  const double elements = 2.0 * shape.lists * shape.head_dim * tokens;
  end_bytes_ += bytes;
  end_elements_ += elements;
  end_tokens_ += tokens;
  std::array<double, kNumRungs> tokens_by_rung;
  for (int i = 0; i < kNumRungs; ++i) {
    tokens_by_rung[i] = static_cast<double>(usage.tokens_by_rung[i]) / shape.lists;
    tokens_by_rung_[i] += tokens_by_rung[i];
  }
  AddDecided(tokens_by_rung, tokens, arm, shape);
  return 8 * bytes / elements;
}

void KvFootprint::AddDecided(std::array<double, kNumRungs> tokens_by_rung, int tokens,
                             const Arm& arm, const Shape& shape) {
  if (arm.naive_rung.has_value()) {
    decided_bytes_ += tokens * BytesPerToken(*arm.naive_rung, shape.head_dim);
    decided_elements_ += 2.0 * shape.head_dim * tokens;
    return;
  }
  const int settled = SettledTokens(arm.ring, tokens);
  if (settled <= kTileTokens) return;  // the first page has the sink and is not decided
  tokens_by_rung[static_cast<size_t>(arm.ring.sink_rung)] -= kTileTokens;
  tokens_by_rung[static_cast<size_t>(arm.ring.rung)] -= tokens - settled;
  for (int i = 0; i < kNumRungs; ++i) {
    decided_bytes_ += tokens_by_rung[i] * BytesPerToken(static_cast<Rung>(i), shape.head_dim);
  }
  decided_elements_ += 2.0 * shape.head_dim * (settled - kTileTokens);
}

int ArmRunner::DefaultBatch(const ModelConfig& config, size_t num_arms, int tokens) {
  const double bytes = static_cast<double>(num_arms) * tokens *
                       static_cast<double>(config.kv_elements_per_token() * sizeof(uint16_t));
  return std::clamp(static_cast<int>(kMemoryAtOnce / bytes), 1, kMaxBatch);
}

ArmRunner::ArmRunner(Model& model, std::vector<Arm> arms)
    : model_(model),
      arms_(std::move(arms)),
      shape_({.lists = model.config().num_layers * model.config().num_kv_heads,
              .head_dim = model.config().head_dim}),
      footprints_(arms_.size()) {
  for (const Arm& arm : arms_) {
    prices_.emplace_back(arm.prices, shape_.head_dim);
    if (arm.oracle.has_value() && recorder_ == nullptr) {
      recorder_ = std::make_unique<OracleRecorder>(model_);
    }
  }
}

absl::Status ArmRunner::Run(absl::Span<const Sequence> sequences, int batch, RowsFn on_rows,
                            StepFn on_step, EndFn on_end) {
  batch = std::clamp(batch, 1, kMaxBatch);
  absl::StatusOr<std::unique_ptr<PagePool>> pool = MakePool(sequences, batch);
  if (!pool.ok()) return pool.status();
  std::vector<Active> active;
  size_t started = 0;
  int64_t tokens_done = 0;
  bool go_on = true;
  while (go_on && (started < sequences.size() || !active.empty())) {
    while (static_cast<int>(active.size()) < batch && started < sequences.size()) {
      absl::StatusOr<Active> fresh = Begin(sequences, static_cast<int>(started++), **pool);
      if (!fresh.ok()) return fresh.status();
      active.push_back(*std::move(fresh));
    }
    if (absl::Status status = RunSlice(sequences, active, on_rows); !status.ok()) return status;
    for (Active& one : active) tokens_done += one.next - std::exchange(one.position, one.next);
    const auto ended = std::stable_partition(active.begin(), active.end(), [&](const Active& one) {
      return one.position < static_cast<int>(sequences[one.sequence].tokens.size());
    });
    std::for_each(ended, active.end(), [&](const Active& one) { End(one, on_end); });
    active.erase(ended, active.end());
    go_on = on_step(tokens_done);
  }
  for (const Active& one : active) End(one, on_end);
  return absl::OkStatus();
}

absl::StatusOr<ArmRunner::Active> ArmRunner::Begin(absl::Span<const Sequence> sequences,
                                                   int sequence, PagePool& pool) {
  const std::vector<int32_t>& tokens = sequences[sequence].tokens;
  Active active;
  active.sequence = sequence;
  active.oracle.resize(arms_.size());
  for (size_t arm = 0; arm < arms_.size(); ++arm) {
    active.table.push_back(model_.NewPageTable(pool, arms_[arm].ring));
    active.signals.push_back(std::make_unique<SequenceSignals>(
        arms_[arm].policy == nullptr ? SignalNeeds() : arms_[arm].policy->needs(),
        model_.config().num_layers, model_.config().num_kv_heads,
        /*first_position=*/0));
    active.price.push_back(std::make_unique<SequencePrice>(
        arms_[arm].spec, /*target_true_bits=*/0, model_.config(), prices_[arm],
        /*server_has_target=*/false, /*explained_tokens=*/static_cast<int>(tokens.size())));
  }
  if (absl::Status status = Foresee(tokens, active); !status.ok()) return status;
  return active;
}

absl::Status ArmRunner::Foresee(absl::Span<const int32_t> tokens, Active& active) {
  std::optional<std::pair<RecentRing, FutureLosses>> recorded;  // arms mostly share a ring
  for (size_t arm = 0; arm < arms_.size(); ++arm) {
    if (!arms_[arm].oracle.has_value()) continue;
    if (!recorded.has_value() || recorded->first != arms_[arm].ring) {
      absl::StatusOr<FutureLosses> losses = recorder_->Record(tokens, arms_[arm].ring);
      if (!losses.ok()) return losses.status();
      recorded.emplace(arms_[arm].ring, *std::move(losses));
    }
    active.oracle[arm] = MakeOraclePolicy(recorded->second, arms_[arm].oracle->errors,
                                          shape_.head_dim, arms_[arm].oracle->packed_bits);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PagePool>> ArmRunner::MakePool(absl::Span<const Sequence> sequences,
                                                              int batch) const {
  size_t longest = 0;
  for (const Sequence& sequence : sequences) longest = std::max(longest, sequence.tokens.size());
  // Whole pages, and of every rung one that is part-filled, at the largest rung's size; memory that
  // is not used is not taken from the system.
  const size_t pages = PagesFor(static_cast<int64_t>(longest)) + kNumRungs;
  const size_t bytes = pages * PageBytes(Rung::kFp16, shape_.head_dim) * shape_.lists;
  const size_t sequences_held = batch * arms_.size();
  return PagePool::Create(
      {.capacity_bytes = bytes * sequences_held + kNumRungs * PagePool::kSlabBytes,
       .head_dim = shape_.head_dim});
}

absl::Status ArmRunner::RunSlice(absl::Span<const Sequence> sequences, std::vector<Active>& active,
                                 RowsFn on_rows) {
  for (Active& one : active) {
    const auto size = static_cast<int>(sequences[one.sequence].tokens.size());
    one.next = std::min(size, (one.position / kSliceTokens + 1) * kSliceTokens);
  }
  for (size_t arm = 0; arm < arms_.size(); ++arm) {
    absl::Status status = RunArm(static_cast<int>(arm), sequences, active, on_rows);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ArmRunner::RunArm(int arm, absl::Span<const Sequence> sequences,
                               std::vector<Active>& active, RowsFn on_rows) {
  std::vector<ForwardSlice> slices;
  for (Active& one : active) {
    const Sequence& sequence = sequences[one.sequence];
    const size_t first = one.position, count = one.next - one.position;
    SequencePrice& price = *one.price[arm];
    if (price.pays()) price.Update(/*pressure=*/0);
    const bool scored = HasTarget(absl::MakeConstSpan(sequence.targets).subspan(first, count));
    slices.push_back(
        {.tokens = absl::MakeConstSpan(sequence.tokens).subspan(first, count),
         .first_position = one.position,
         .kv = &one.table[arm],
         .policy = one.oracle[arm] != nullptr ? one.oracle[arm].get() : arms_[arm].policy.get(),
         .price = price.price(),
         .decisions = &price.decisions(),
         .signals = one.signals[arm].get(),
         .activations = arms_[arm].activations,
         .logits = scored ? ForwardSlice::Logits::kAll : ForwardSlice::Logits::kNone});
  }
  const float* logits = model_.Forward(slices).data();

  std::vector<ScoredRow> rows;
  for (size_t i = 0; i < active.size(); ++i) {
    const Active& one = active[i];
    if (!one.table[arm].status().ok()) return one.table[arm].status();
    one.price[arm]->EndStep(one.table[arm]);
    if (arms_[arm].naive_rung.has_value()) {
      const ModelConfig& config = model_.config();
      RoundLastPages(one.table[arm], config.num_layers, config.num_kv_heads,
                     *arms_[arm].naive_rung);
    }
    footprints_[arm].AddStep(one.table[arm], arms_[arm], one.next - one.position, shape_);
    if (slices[i].logits == ForwardSlice::Logits::kNone) continue;
    for (int position = one.position; position < one.next; ++position) {
      const int32_t target = sequences[one.sequence].targets[position];
      if (target != Sequence::kNotScored) {
        rows.push_back(
            {.sequence = one.sequence, .position = position, .target = target, .logits = logits});
      }
      logits += model_.config().vocab_size;
    }
  }
  on_rows(arm, rows);
  return absl::OkStatus();
}

void ArmRunner::End(const Active& active, EndFn on_end) {
  for (size_t arm = 0; arm < arms_.size(); ++arm) {
    on_end({.arm = static_cast<int>(arm),
            .sequence = active.sequence,
            .true_bits = footprints_[arm].AddEnd(active.table[arm], arms_[arm], shape_),
            .table = active.table[arm],
            .decisions = active.price[arm]->decisions()});
  }
}

}  // namespace whit::eval
