#include "runtime/model/model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kvpool/quantizer.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/gated_matmul.h"
#include "runtime/ops/logits.h"

namespace whit {
namespace {

// Rows that a thread claims at a time in loops over tokens.
constexpr size_t kRowGrain = 4;

// Rows of logits that are computed at once for their entropy alone.
constexpr size_t kObservedRows = 64;

// Fewer tokens than this are appended to their tables by one thread.
constexpr int kFewTokens = 16;

// Calls fn(slice, row) for each slice with the index of its first token's row.
template <typename Fn>
void ForEachSlice(absl::Span<const ForwardSlice> slices, Fn fn) {
  size_t row = 0;
  for (const ForwardSlice& slice : slices) {
    fn(slice, row);
    row += slice.tokens.size();
  }
}

AttentionTally* TallyOf(const ForwardSlice& slice) {
  return slice.signals == nullptr ? nullptr : slice.signals->tally();
}
TokenFeatureLog* FeaturesOf(const ForwardSlice& slice) {
  return slice.signals == nullptr ? nullptr : slice.signals->features();
}

bool AnyFeatures(absl::Span<const ForwardSlice> slices) {
  return std::any_of(slices.begin(), slices.end(),
                     [](const ForwardSlice& slice) { return FeaturesOf(slice) != nullptr; });
}

void Grow(std::vector<float>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
}

hwy::AlignedFreeUniquePtr<float[]> AllocateRows(size_t columns) {
  return hwy::AllocateAligned<float>(Model::kMaxForwardTokens * columns);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const GgufFile& file, ThreadPool& pool) {
  absl::StatusOr<ModelConfig> config = ReadModelConfig(file);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<ModelWeights>> weights = ModelWeights::Load(file, *config, pool);
  if (!weights.ok()) return weights.status();
  return std::unique_ptr<Model>(new Model(*std::move(config), *std::move(weights), pool));
}

Model::Model(ModelConfig config, std::unique_ptr<ModelWeights> weights, ThreadPool& pool)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      pool_(pool),
      attention_shape_({.num_heads = config_.num_heads,
                        .num_kv_heads = config_.num_kv_heads,
                        .head_dim = config_.head_dim,
                        .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))}),
      hidden_(AllocateRows(config_.hidden_size)),
      normed_(AllocateRows(config_.hidden_size)),
      qkv_(AllocateRows(qkv_stride())),
      attended_(AllocateRows(config_.query_size())),
      gated_floats_(AllocateRows(ffn_stride())),
      activations_(kMaxForwardTokens, std::max(config_.hidden_size, config_.query_size())),
      gated_(kMaxForwardTokens, config_.ffn_size),
      queries_(attention_shape_, kMaxForwardTokens) {}

PageTable Model::NewPageTable(PagePool& pool, const RecentRing& ring) const {
  return PageTable(&pool, {.num_layers = config_.num_layers, .num_kv_heads = config_.num_kv_heads},
                   ring, key_means_.get());
}

void Model::SetKeyMeans(std::vector<float> means) {
  key_means_ = std::make_unique<KeyMeans>(
      KeyMeans::Shape{.num_layers = config_.num_layers,
                      .num_kv_heads = config_.num_kv_heads,
                      .head_dim = config_.head_dim,
                      .inverse_frequencies = config_.rope_inverse_frequencies},
      std::move(means));
}

absl::Span<const float> Model::Forward(absl::Span<const ForwardSlice> slices) {
  times_ = {};
  lap_.Start();
  activation_formats_.clear();
  for (const ForwardSlice& slice : slices) {
    activation_formats_.insert(activation_formats_.end(), slice.tokens.size(), slice.activations);
  }
  num_tokens_ = static_cast<int>(activation_formats_.size());
  CutIntoRounds(slices);
  Embed(slices);
  PrepareRope(slices);
  if (AnyFeatures(slices)) {
    Grow(squared_probabilities_, size_t{1} * num_tokens_ * config_.num_heads);
  }
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    AttentionBlock(layer);
    FeedForwardBlock(layer);
  }
  lap_.EndLap(times_.matmul);
  ObserveAttention(slices);
  const absl::Span<const float> logits = ComputeLogits(slices);
  lap_.EndLap(times_.logits);
  return logits;
}

void Model::CutIntoRounds(absl::Span<const ForwardSlice> slices) {
  rounds_.clear();
  int last_position = 0;
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first_row) {
    const int end = slice.first_position + static_cast<int>(slice.tokens.size());
    last_position = std::max(last_position, end);
    size_t round = 0;
    for (int position = slice.first_position; position < end; ++round) {
      // Where nothing is ever settled, a whole slice may be one piece.
      const int cut = (position / kPrefillBlock + 1) * kPrefillBlock;
      const int piece_end = slice.policy == nullptr ? end : std::min(end, cut);
      if (rounds_.size() <= round) rounds_.emplace_back();
      rounds_[round].push_back({.slice = &slice,
                                .first_row = first_row + position - slice.first_position,
                                .first_position = position,
                                .num_tokens = piece_end - position});
      position = piece_end;
    }
  });
  if (key_means_ != nullptr) key_means_->Prepare(last_position);
}

void Model::Embed(absl::Span<const ForwardSlice> slices) {
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    pool_.ParallelFor(slice.tokens.size(), kRowGrain, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        weights_->embedding.UnpackRow(slice.tokens[i],
                                      hidden_.get() + (first + i) * config_.hidden_size);
      }
    });
  });
}

void Model::PrepareRope(absl::Span<const ForwardSlice> slices) {
  const size_t dims = config_.rope_dims;
  Grow(cosines_, num_tokens_ * dims);
  Grow(sines_, num_tokens_ * dims);
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    for (size_t i = 0; i < slice.tokens.size(); ++i) {
      float* cosines = cosines_.data() + (first + i) * dims;
      float* sines = sines_.data() + (first + i) * dims;
      const auto position = static_cast<float>(slice.first_position + i);
      for (size_t pair = 0; pair < dims / 2; ++pair) {
        const float angle = position * config_.rope_inverse_frequencies[pair];
        cosines[2 * pair] = cosines[2 * pair + 1] = std::cos(angle);
        sines[2 * pair + 1] = std::sin(angle);
        sines[2 * pair] = -sines[2 * pair + 1];
      }
    }
  });
}

void Model::AttentionBlock(int layer) {
  const LayerWeights& w = weights_->layers[layer];
  const size_t query = config_.query_size(), kv = config_.kv_size(), stride = qkv_stride();

  NormalizeInto(w.attention_norm.data(), {});
  MatMul(activations_,
         {{.weights = &w.query, .out = qkv_.get(), .stride = stride},
          {.weights = &w.key, .out = qkv_.get() + query, .stride = stride},
          {.weights = &w.value, .out = qkv_.get() + query + kv, .stride = stride}},
         pool_);
  lap_.EndLap(times_.matmul);
  RotateRows();
  for (const std::vector<Piece>& pieces : rounds_) AttendRound(layer, pieces);

  activations_.Reset(activation_formats_, query);
  activations_.SetFloats(attended_.get(), query);
  pool_.ParallelFor(num_tokens_, kRowGrain, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      activations_.SetRow(row, attended_.get() + row * query);
    }
  });
  MatMul(activations_,
         {{.weights = &w.attention_output,
           .out = hidden_.get(),
           .stride = static_cast<size_t>(config_.hidden_size),
           .accumulate = true}},
         pool_);
  if (layer_probe_ == nullptr) return;
  layer_probe_({.layer = layer,
                .num_rows = num_tokens_,
                .queries = qkv_.get(),
                .keys = qkv_.get() + query,
                .values = qkv_.get() + query + kv,
                .stride = stride,
                .attended = attended_.get(),
                .residual = hidden_.get()});
}

void Model::RotateRows() {
  const size_t dims = config_.rope_dims, head_dim = config_.head_dim;
  const size_t num_heads = config_.num_heads, num_kv_heads = config_.num_kv_heads;
  pool_.ParallelFor(num_tokens_, kRowGrain, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      float* heads = qkv_.get() + row * qkv_stride();
      for (size_t head = 0; head < num_heads + num_kv_heads; ++head) {  // keys follow the queries
        RotatePairs(heads + head * head_dim, dims, cosines_.data() + row * dims,
                    sines_.data() + row * dims);
      }
      queries_.SetRow(row, heads, activation_formats_[row] == ActivationFormat::kBFloat16);
      for (size_t head = num_heads; head < num_heads + 2 * num_kv_heads; ++head) {
        RotateHadamard(heads + head * head_dim, config_.head_dim);
      }
    }
  });
}

void Model::AttendRound(int layer, absl::Span<const Piece> pieces) {
  Append(layer, pieces);
  attention_slices_.clear();
  for (const Piece& piece : pieces) {
    const bool observed = FeaturesOf(*piece.slice) != nullptr && layer == config_.num_layers - 1;
    attention_slices_.push_back(
        {.first_row = piece.first_row,
         .out = attended_.get() + piece.first_row * config_.query_size(),
         .out_stride = static_cast<size_t>(config_.query_size()),
         .num_tokens = piece.num_tokens,
         .first_position = piece.first_position,
         .kv = piece.slice->kv,
         .tiles = piece.slice->activations == ActivationFormat::kBFloat16,
         .tally = TallyOf(*piece.slice),
         .squared_probabilities =
             observed ? squared_probabilities_.data() + piece.first_row * config_.num_heads
                      : nullptr});
  }
  Attention(attention_shape_, layer, queries_, attention_slices_, pool_, attention_scratch_);
  lap_.EndLap(times_.attention);
  SettleLeaving(layer, pieces);
  lap_.EndLap(times_.quantize);
}

void Model::Append(int layer, absl::Span<const Piece> pieces) {
  const size_t heads = config_.num_kv_heads, stride = qkv_stride();
  int tokens = 0;
  for (const Piece& piece : pieces) tokens += piece.num_tokens;
  // A few tokens are appended sooner than a thread is woken.
  const size_t grain = tokens < kFewTokens ? pieces.size() * heads : 1;
  pool_.ParallelFor(pieces.size() * heads, grain, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[i / heads];
      const size_t head = i % heads;
      const float* keys =
          qkv_.get() + piece.first_row * stride + config_.query_size() + head * config_.head_dim;
      piece.slice->kv->Append(layer, static_cast<int>(head), piece.num_tokens,
                              {.keys = keys, .values = keys + config_.kv_size(), .stride = stride});
      if (AttentionTally* tally = TallyOf(*piece.slice); tally != nullptr) {
        tally->Append(layer, static_cast<int>(head), piece.num_tokens);
      }
    }
  });
}

void Model::SettleLeaving(int layer, absl::Span<const Piece> pieces) {
  // The heads of a sequence fill their rings alike.
  std::vector<const Piece*> due;
  PageTable::LeavingPage page;
  for (const Piece& piece : pieces) {
    const bool cut_short = piece.slice->prompt_continues &&
                           (piece.first_position + piece.num_tokens) % kPrefillBlock != 0;
    if (piece.slice->policy != nullptr && !cut_short &&
        piece.slice->kv->NextLeaving(layer, 0, &page)) {
      due.push_back(&piece);
    }
  }
  const size_t heads = config_.num_kv_heads;
  pool_.ParallelFor(due.size() * heads, 1, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      SettleHead(layer, static_cast<int>(i % heads), *due[i / heads]);
    }
  });
}

void Model::SettleHead(int layer, int kv_head, const Piece& piece) const {
  const ForwardSlice& slice = *piece.slice;
  const SignalNeeds needs = slice.policy->needs();
  std::vector<float> keys, values;
  PageTable::LeavingPage page;
  while (slice.kv->NextLeaving(layer, kv_head, &page)) {
    // Features come at the end of a pass.
    if (needs.features && page.first_position + page.tokens > slice.first_position) return;
    LeavingTokens tokens = {.layer = layer,
                            .kv_head = kv_head,
                            .first_position = page.first_position,
                            .count = page.tokens,
                            .context = piece.first_position + piece.num_tokens,
                            .head_dim = config_.head_dim,
                            .query_heads = config_.num_heads / config_.num_kv_heads,
                            .price = slice.price};
    if (needs.attention) tokens.received = TallyOf(slice)->received(layer, kv_head);
    if (needs.features) tokens.features = FeaturesOf(slice)->Find(page.first_position, page.tokens);
    if (needs.vectors) {
      keys.resize(size_t{kTileTokens} * config_.head_dim);
      values.resize(keys.size());
      slice.kv->ReadLeaving(layer, kv_head, keys.data(), values.data());
      tokens.keys = keys.data();
      tokens.values = values.data();
      if (key_means_ != nullptr) {
        tokens.key_mean = key_means_->mean(KeyMeans::Block(page.first_position), layer, kv_head);
      }
    }
    Rung rungs[kTileTokens];
    const auto decided = absl::MakeSpan(rungs, page.tokens);
    if (page.sink) {
      std::fill(decided.begin(), decided.end(), Rung::kFp16);
    } else {
      slice.policy->Decide(tokens, decided);
      if (slice.decisions != nullptr) slice.decisions->Add(tokens, decided);
    }
    const TokenRows rows = {.keys = tokens.keys,
                            .values = tokens.values,
                            .stride = static_cast<size_t>(config_.head_dim)};
    slice.kv->Settle(layer, kv_head, decided, needs.vectors ? &rows : nullptr);
    if (AttentionTally* tally = TallyOf(slice); tally != nullptr) {
      tally->Drop(layer, kv_head, page.tokens);
    }
  }
}

void Model::FeedForwardBlock(int layer) {
  const LayerWeights& w = weights_->layers[layer];
  NormalizeInto(w.ffn_norm.data(), {});
  GatedMatMulOutput gated = {.activations = &gated_};
  if (!IsQuantized(w.down.format)) {
    gated.floats = gated_floats_.get();
    gated.stride = ffn_stride();
  }
  GatedMatMul(activations_, w.gate, w.up, gated, pool_);
  MatMul(gated_,
         {{.weights = &w.down,
           .out = hidden_.get(),
           .stride = static_cast<size_t>(config_.hidden_size),
           .accumulate = true}},
         pool_);
}

void Model::NormalizeInto(const float* weight, absl::Span<const int> rows) {
  const size_t hidden = config_.hidden_size;
  const size_t count = rows.empty() ? num_tokens_ : rows.size();
  std::vector<ActivationFormat> chosen;
  for (int row : rows) chosen.push_back(activation_formats_[row]);
  activations_.Reset(rows.empty() ? activation_formats_ : chosen, hidden);
  activations_.SetFloats(normed_.get(), hidden);
  pool_.ParallelFor(count, kRowGrain, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      const size_t row = rows.empty() ? i : rows[i];
      float* normed = normed_.get() + i * hidden;
      RmsNorm(hidden_.get() + row * hidden, weight, config_.rms_norm_epsilon, hidden, normed);
      activations_.SetRow(i, normed);
    }
  });
}

absl::Span<const float> Model::ComputeLogits(absl::Span<const ForwardSlice> slices) {
  std::vector<int> rows;
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    const size_t count = slice.tokens.size();
    if (slice.logits == ForwardSlice::Logits::kNone) return;
    size_t i = slice.logits == ForwardSlice::Logits::kLast ? count - 1 : 0;
    for (; i < count; ++i) rows.push_back(static_cast<int>(first + i));
  });
  const size_t vocab = config_.vocab_size;
  if (!rows.empty()) {
    Grow(logits_, rows.size() * vocab);
    MultiplyByOutput(rows, logits_.data());
  }
  const auto logits = absl::MakeConstSpan(logits_.data(), rows.size() * vocab);
  ObserveLogits(slices, rows, logits);
  return logits;
}

void Model::MultiplyByOutput(absl::Span<const int> rows, float* logits) {
  NormalizeInto(weights_->output_norm.data(), rows);
  MatMul(activations_,
         {{.weights = &weights_->output,
           .out = logits,
           .stride = static_cast<size_t>(config_.vocab_size)}},
         pool_);
}

void Model::ObserveAttention(absl::Span<const ForwardSlice> slices) {
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    TokenFeatureLog* features = FeaturesOf(slice);
    if (features == nullptr) return;
    features->Append(slice.tokens);
    for (size_t i = 0; i < slice.tokens.size(); ++i) {
      const float* squares = squared_probabilities_.data() + (first + i) * config_.num_heads;
      const double visible = slice.first_position + static_cast<double>(i) + 1;
      double variance = 0;  // E[a^2] - E[a]^2, and a row's probabilities add up to 1
      for (int head = 0; head < config_.num_heads; ++head) {
        variance += squares[head] / visible - 1 / (visible * visible);
      }
      features->at(slice.first_position + static_cast<int>(i)).attention_variance =
          static_cast<float>(variance / config_.num_heads);
    }
  });
}

void Model::ObserveLogits(absl::Span<const ForwardSlice> slices, absl::Span<const int> rows,
                          absl::Span<const float> logits) {
  if (!AnyFeatures(slices)) return;
  const size_t vocab = config_.vocab_size;
  std::vector<TokenFeatures*> features(num_tokens_);  // by row; null: nobody asks
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    TokenFeatureLog* log = FeaturesOf(slice);
    for (size_t i = 0; log != nullptr && i < slice.tokens.size(); ++i) {
      features[first + i] = &log->at(slice.first_position + static_cast<int>(i));
    }
  });
  const auto observe = [&](absl::Span<const int> of_rows, const float* of_logits) {
    pool_.ParallelFor(of_rows.size(), 1, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        TokenFeatures* token = std::exchange(features[of_rows[i]], nullptr);
        if (token == nullptr) continue;
        const SoftmaxSummary summary = SummarizeSoftmax(of_logits + i * vocab, vocab);
        token->entropy = static_cast<float>(summary.entropy);
        token->confidence = static_cast<float>(summary.largest);
      }
    });
  };
  observe(rows, logits.data());
  std::vector<int> rest;
  for (int row = 0; row < num_tokens_; ++row) {
    if (features[row] != nullptr) rest.push_back(row);
  }
  for (size_t begin = 0; begin < rest.size(); begin += kObservedRows) {
    const auto part = absl::MakeConstSpan(rest).subspan(begin, kObservedRows);
    Grow(observed_logits_, part.size() * vocab);
    MultiplyByOutput(part, observed_logits_.data());
    observe(part, observed_logits_.data());
  }
}

}  // namespace whit
