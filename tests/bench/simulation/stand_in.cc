#include "tests/bench/simulation/stand_in.h"

#include <cmath>
#include <random>

#include "kvpool/page_pool.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {

StandIn::StandIn(int lists, int head_dim, int context_length) {
  const std::vector<std::byte> bytes = MakeTinyModel({.context_length = context_length,
                                                      .hidden_size = 32,
                                                      .ffn_size = 32,
                                                      .num_layers = 1,
                                                      .num_heads = lists,
                                                      .num_kv_heads = lists,
                                                      .head_dim = head_dim})
                                           .Build();
  const std::unique_ptr<GgufFile> file = GgufFile::Parse(bytes).value();
  model_ = Model::Load(*file, threads_).value();
  tokenizer_ = Tokenizer::Create(*file).value();
}

std::vector<int32_t> StandIn::Prompt(int tokens, uint64_t seed) const {
  std::mt19937 rng(static_cast<uint32_t>(seed));
  std::vector<int32_t> prompt(tokens);
  for (int32_t& id : prompt) id = static_cast<int32_t>(rng() % tokenizer_->vocab_size());
  return prompt;
}

size_t StandInPoolBytes(size_t bytes, double scale) {
  const size_t moving_room = bytes - PagePool::UsableBytes(bytes);
  const double usable = static_cast<double>(bytes - moving_room) / scale;
  const auto slabs = static_cast<size_t>(std::llround(usable / PagePool::kSlabBytes));
  return slabs * PagePool::kSlabBytes + moving_room;
}

}  // namespace whit
