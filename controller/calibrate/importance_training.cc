#include "controller/calibrate/importance_training.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "controller/calibrate/network.h"
#include "controller/calibrate/random.h"

namespace whit {
namespace {

constexpr int kFeatures = kNumImportanceFeatures, kHidden = ImportanceModel::kHidden;
constexpr int kEmbedding = 16;  // of a pair, learned
constexpr float kMaxScore = 6;  // of standardized features
constexpr float kMinSpread = 0.01f;
// Importance in means of its pair, and bounds of its logarithm.
constexpr float kMinWeight = 1e-5f, kMaxWeight = 300, kMinLog = -12, kMaxLog = 8;
constexpr float kNetworkRate = 3e-3f, kLinearRate = 1e-2f;
constexpr size_t kEvaluated = 4096;  // samples at a time

// Mean of fn(sample) by pair, each context with the same weight; [pair][values].
template <typename Fn>
std::vector<double> MeansByPair(absl::Span<const SamplesOfContext> contexts, int num_pairs,
                                size_t values, Fn fn) {
  std::vector<double> means(num_pairs * values);
  int counted = 0;
  for (const SamplesOfContext& context : contexts) {
    if (context.learned.empty()) continue;
    ++counted;
    std::vector<double> sums(means.size());
    std::vector<int> counts(num_pairs);
    for (const ImportanceSample& sample : context.learned) {
      ++counts[sample.pair];
      fn(sample, sums.data() + sample.pair * values);
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      means[i] += sums[i] / std::max(counts[i / values], 1);
    }
  }
  for (double& mean : means) mean /= std::max(counted, 1);
  return means;
}

// What is done to samples before a model sees them.
struct Scaling {
  std::vector<float> centers, spreads;  // [pair][feature]
  std::vector<float> mean_importance;   // [pair][2]

  Scaling(absl::Span<const SamplesOfContext> contexts, int num_pairs) {
    const std::vector<double> moments = MeansByPair(
        contexts, num_pairs, 2 * kFeatures, [](const ImportanceSample& sample, double* sums) {
          for (int i = 0; i < kFeatures; ++i) {
            sums[i] += sample.features[i];
            sums[kFeatures + i] += double{sample.features[i]} * sample.features[i];
          }
        });
    for (int pair = 0; pair < num_pairs; ++pair) {
      const double* of_pair = moments.data() + size_t{2} * pair * kFeatures;
      for (int i = 0; i < kFeatures; ++i) {
        const double mean = of_pair[i], variance = of_pair[kFeatures + i] - mean * mean;
        centers.push_back(static_cast<float>(mean));
        spreads.push_back(
            std::max(static_cast<float>(std::sqrt(std::max(variance, 0.0))), kMinSpread));
      }
    }
    for (double mean :
         MeansByPair(contexts, num_pairs, 2, [](const ImportanceSample&sample, double*sums) {
           sums[0] += sample.importance[0];
           sums[1] += sample.importance[1];
         })) {
      mean_importance.push_back(std::max(static_cast<float>(mean), 1e-30f));
    }
  }

  void Scores(const ImportanceSample& sample, float* scores) const {
    const size_t at = size_t{1} * sample.pair * kFeatures;
    for (int i = 0; i < kFeatures; ++i) {
      scores[i] = std::clamp((sample.features[i] - centers[at + i]) / spreads[at + i], -kMaxScore,
                             kMaxScore);
    }
  }
  float Weight(const ImportanceSample& sample, int kv) const {
    return std::clamp(sample.importance[kv] / mean_importance[2 * sample.pair + kv], kMinWeight,
                      kMaxWeight);
  }
};

using SampleRefs = std::vector<const ImportanceSample*>;

// The slope of w e^-y + y by y for outputs y[sample][2], in place; none beyond the bounds of y.
void LossSlopes(const Scaling& scaling, absl::Span<const ImportanceSample* const> samples,
                Matrix& y) {
  for (size_t i = 0; i < samples.size(); ++i) {
    for (int kv = 0; kv < 2; ++kv) {
      float& of = y(static_cast<Eigen::Index>(i), kv);
      const bool within = of > kMinLog && of < kMaxLog;
      of = within ? 1 - scaling.Weight(*samples[i], kv) * std::exp(-of) : 0;
    }
  }
}

// The network with an embedding and an output bias for each pair. Parameters: the network's, the
// embeddings, the biases.
class PairNetwork {
 public:
  PairNetwork(const Scaling& scaling, int num_pairs)
      : scaling_(scaling),
        num_pairs_(num_pairs),
        network_({kFeatures + kEmbedding, kHidden, kHidden, 2}) {}

  std::vector<float> Initial(Random& random) const {
    std::vector<float> parameters(bias_offset(num_pairs_));
    network_.Initialize(absl::MakeSpan(parameters).subspan(0, network_.num_parameters()), random);
    for (size_t i = embedding_offset(0); i < bias_offset(0); ++i) {
      parameters[i] = static_cast<float>(random.Normal());
    }
    return parameters;
  }

  Network::Activations Forward(absl::Span<const float> parameters,
                               absl::Span<const ImportanceSample* const> samples) const {
    Network::Activations activations = {Matrix(samples.size(), kFeatures + kEmbedding)};
    for (size_t i = 0; i < samples.size(); ++i) {
      float* row = activations[0].row(static_cast<Eigen::Index>(i)).data();
      scaling_.Scores(*samples[i], row);
      std::copy_n(parameters.data() + embedding_offset(samples[i]->pair), kEmbedding,
                  row + kFeatures);
    }
    network_.Forward(parameters, activations);
    for (size_t i = 0; i < samples.size(); ++i) {
      const float* bias = parameters.data() + bias_offset(samples[i]->pair);
      activations.back()(static_cast<Eigen::Index>(i), 0) += bias[0];
      activations.back()(static_cast<Eigen::Index>(i), 1) += bias[1];
    }
    return activations;
  }

  void AddGradient(absl::Span<const float> parameters,
                   absl::Span<const ImportanceSample* const> samples,
                   absl::Span<float> gradient) const {
    const Network::Activations activations = Forward(parameters, samples);
    Matrix slope = activations.back();
    LossSlopes(scaling_, samples, slope);
    for (size_t i = 0; i < samples.size(); ++i) {
      float* bias = gradient.data() + bias_offset(samples[i]->pair);
      bias[0] += slope(static_cast<Eigen::Index>(i), 0);
      bias[1] += slope(static_cast<Eigen::Index>(i), 1);
    }
    network_.Backward(parameters, activations, slope, gradient);
    for (size_t i = 0; i < samples.size(); ++i) {
      float* embedding = gradient.data() + embedding_offset(samples[i]->pair);
      const float* row = slope.row(static_cast<Eigen::Index>(i)).data() + kFeatures;
      for (int e = 0; e < kEmbedding; ++e) embedding[e] += row[e];
    }
  }

  // Folds the embeddings into biases and the mean importance into the output.
  ImportanceModel Fold(absl::Span<const float> parameters) const {
    ImportanceModel model;
    model.centers = scaling_.centers;
    model.spreads = scaling_.spreads;
    const float* weights1 = parameters.data() + network_.weights_offset(0);
    model.weights1.assign(weights1, weights1 + size_t{kFeatures} * kHidden);
    const float* of_embedding = weights1 + size_t{kFeatures} * kHidden;
    const float* bias1 = parameters.data() + network_.biases_offset(0);
    for (int pair = 0; pair < num_pairs_; ++pair) {
      for (int unit = 0; unit < kHidden; ++unit) {
        float sum = bias1[unit];
        for (int e = 0; e < kEmbedding; ++e) {
          sum += parameters[embedding_offset(pair) + e] * of_embedding[e * kHidden + unit];
        }
        model.pair_bias1.push_back(sum);
      }
    }
    const auto copy = [&](size_t offset, size_t count, std::vector<float>& to) {
      to.assign(parameters.begin() + static_cast<ptrdiff_t>(offset),
                parameters.begin() + static_cast<ptrdiff_t>(offset + count));
    };
    copy(network_.weights_offset(1), size_t{kHidden} * kHidden, model.weights2);
    copy(network_.biases_offset(1), kHidden, model.bias2);
    copy(network_.weights_offset(2), size_t{kHidden} * 2, model.weights3);
    copy(bias_offset(0), size_t{2} * num_pairs_, model.pair_bias3);
    for (size_t i = 0; i < model.pair_bias3.size(); ++i) {
      model.pair_bias3[i] +=
          parameters[network_.biases_offset(2) + i % 2] + std::log(scaling_.mean_importance[i]);
    }
    return model;
  }

 private:
  size_t embedding_offset(int pair) const {
    return network_.num_parameters() + size_t{1} * pair * kEmbedding;
  }
  size_t bias_offset(int pair) const { return embedding_offset(num_pairs_) + size_t{2} * pair; }

  const Scaling& scaling_;
  const int num_pairs_;
  const Network network_;
};

// y = a linear function of the scores for each pair. Parameters: [pair][feature, then 1][2].
class PairLinear {
 public:
  explicit PairLinear(const Scaling& scaling) : scaling_(scaling) {}

  static size_t num_parameters(int num_pairs) { return size_t{1} * num_pairs * kOfPair; }

  Matrix Forward(absl::Span<const float> parameters,
                 absl::Span<const ImportanceSample* const> samples) const {
    Matrix y(samples.size(), 2);
    for (size_t i = 0; i < samples.size(); ++i) {
      float scores[kFeatures + 1];
      Scores(*samples[i], scores);
      const float* of_pair = parameters.data() + size_t{1} * samples[i]->pair * kOfPair;
      for (int kv = 0; kv < 2; ++kv) {
        float sum = 0;
        for (int f = 0; f <= kFeatures; ++f) sum += scores[f] * of_pair[2 * f + kv];
        y(static_cast<Eigen::Index>(i), kv) = sum;
      }
    }
    return y;
  }

  void AddGradient(absl::Span<const float> parameters,
                   absl::Span<const ImportanceSample* const> samples,
                   absl::Span<float> gradient) const {
    Matrix slope = Forward(parameters, samples);
    LossSlopes(scaling_, samples, slope);
    for (size_t i = 0; i < samples.size(); ++i) {
      float scores[kFeatures + 1];
      Scores(*samples[i], scores);
      float* of_pair = gradient.data() + size_t{1} * samples[i]->pair * kOfPair;
      for (int f = 0; f <= kFeatures; ++f) {
        of_pair[2 * f] += scores[f] * slope(static_cast<Eigen::Index>(i), 0);
        of_pair[2 * f + 1] += scores[f] * slope(static_cast<Eigen::Index>(i), 1);
      }
    }
  }

 private:
  static constexpr int kOfPair = 2 * (kFeatures + 1);

  void Scores(const ImportanceSample& sample, float* scores) const {
    scaling_.Scores(sample, scores);
    scores[kFeatures] = 1;
  }

  const Scaling& scaling_;
};

// Draws batches with as many samples of each context.
class Batches {
 public:
  Batches(absl::Span<const SamplesOfContext> contexts, int batch_of_context, uint64_t seed)
      : batch_of_context_(batch_of_context), random_(seed) {
    for (const SamplesOfContext& context : contexts) {
      if (!context.learned.empty()) contexts_.push_back(&context.learned);
    }
    batch_.resize(contexts_.size() * batch_of_context);
  }

  void Draw() {
    size_t at = 0;
    for (const std::vector<ImportanceSample>* samples : contexts_) {
      for (int i = 0; i < batch_of_context_; ++i) {
        batch_[at++] = &(*samples)[random_.Below(samples->size())];
      }
    }
  }
  int size() const { return static_cast<int>(batch_.size()); }
  absl::Span<const ImportanceSample* const> part(int begin, int end) const {
    return absl::MakeConstSpan(batch_).subspan(begin, end - begin);
  }

 private:
  const int batch_of_context_;
  Random random_;
  std::vector<const std::vector<ImportanceSample>*> contexts_;
  SampleRefs batch_;
};

// Outputs of a model for samples held out, bounded.
template <typename Fn>
std::vector<std::array<float, 2>> Evaluate(const std::vector<ImportanceSample>& samples,
                                           ThreadPool& pool, Fn forward) {
  std::vector<std::array<float, 2>> outputs(samples.size());
  pool.ParallelFor(samples.size(), kEvaluated, [&](size_t begin, size_t end, int) {
    SampleRefs refs;
    for (size_t i = begin; i < end; ++i) refs.push_back(&samples[i]);
    const Matrix y = forward(refs);
    for (size_t i = begin; i < end; ++i) {
      const auto row = static_cast<Eigen::Index>(i - begin);
      outputs[i] = {std::clamp(y(row, 0), kMinLog, kMaxLog),
                    std::clamp(y(row, 1), kMinLog, kMaxLog)};
    }
  });
  return outputs;
}

double MeanLoss(const Scaling& scaling, const std::vector<ImportanceSample>& samples,
                const std::vector<std::array<float, 2>>& outputs) {
  double sum = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    for (int kv = 0; kv < 2; ++kv) {
      sum += scaling.Weight(samples[i], kv) * std::exp(-outputs[i][kv]) + outputs[i][kv];
    }
  }
  return samples.empty() ? 0 : sum / (2.0 * static_cast<double>(samples.size()));
}

}  // namespace

ImportanceFit FitImportance(absl::Span<const SamplesOfContext> contexts, int num_pairs,
                            const ImportanceFitOptions& options, ThreadPool& pool,
                            absl::FunctionRef<void(size_t steps)> progress) {
  const Scaling scaling(contexts, num_pairs);
  size_t steps = 0;
  const auto train = [&](const auto& model, float rate, std::vector<float>& parameters) {
    Batches batches(contexts, options.batch_of_context, options.seed);
    Train(
        {.steps = options.steps, .learning_rate = rate, .batch = batches.size()}, pool, parameters,
        [&] {
          batches.Draw();
          progress(++steps);
        },
        [&](int begin, int end, absl::Span<float> gradient) {
          model.AddGradient(parameters, batches.part(begin, end), gradient);
        });
  };

  const PairNetwork network(scaling, num_pairs);
  Random random(options.seed);
  std::vector<float> parameters = network.Initial(random);
  train(network, kNetworkRate, parameters);
  const PairLinear linear(scaling);
  std::vector<float> linear_parameters(PairLinear::num_parameters(num_pairs));
  train(linear, kLinearRate, linear_parameters);

  ImportanceFit fit = {.model = network.Fold(parameters), .held_out = {}, .predicted = {}};
  for (const SamplesOfContext& context : contexts) {
    const std::vector<ImportanceSample>& samples = context.held_out;
    std::vector<std::array<float, 2>> outputs =
        Evaluate(samples, pool,
                 [&](const SampleRefs& refs) { return network.Forward(parameters, refs).back(); });
    fit.held_out.push_back(
        {.context = context.context,
         .samples = samples.size(),
         .network = MeanLoss(scaling, samples, outputs),
         .linear = MeanLoss(scaling, samples,
                            Evaluate(samples, pool,
                                     [&](const SampleRefs& refs) {
                                       return linear.Forward(linear_parameters, refs);
                                     })),
         .constant =
             MeanLoss(scaling, samples, std::vector<std::array<float, 2>>(samples.size()))});
    for (size_t i = 0; i < samples.size(); ++i) {
      for (int kv = 0; kv < 2; ++kv) {
        outputs[i][kv] =
            std::exp(outputs[i][kv]) * scaling.mean_importance[2 * samples[i].pair + kv];
      }
    }
    fit.predicted.push_back(std::move(outputs));
  }
  return fit;
}

std::vector<float> MeanSensitivities(absl::Span<const SamplesOfContext> contexts, int num_pairs) {
  const std::vector<double> means =
      MeansByPair(contexts, num_pairs, 2, [](const ImportanceSample& sample, double* sums) {
        const std::array<float, 2> energy = sample.energy();
        sums[0] += double{sample.importance[0]} * energy[0];
        sums[1] += double{sample.importance[1]} * energy[1];
      });
  return {means.begin(), means.end()};
}

}  // namespace whit
