#include "controller/calibrate/learned_training.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "controller/calibrate/network.h"
#include "controller/calibrate/random.h"

namespace whit {
namespace {

constexpr int kFeatures = LearnedModel::kFeatures, kHidden = LearnedModel::kHidden,
              kClasses = LearnedModel::kClasses;
constexpr float kRate = 3e-3f, kMinSpread = 1e-9f;
constexpr int kHeldOutShare = 5;
constexpr std::array<double, kClasses> kBits = {2, 4, 8, 16};  // of kLearnedRungs

struct Example {
  std::array<float, kFeatures> features;
  std::array<double, kClasses> error;
  int label = 0;
};

std::vector<Example> MakeExamples(absl::Span<const SamplesOfContext> contexts,
                                  const std::array<float, 3>& key_error,
                                  const std::array<float, 3>& value_error) {
  std::vector<Example> examples;
  for (const SamplesOfContext& context : contexts) {
    for (const TokenSample& token : context.tokens) {
      Example& example = examples.emplace_back();
      example.features = {token.features.entropy, token.features.rarity,
                          token.features.attention_variance, token.features.confidence};
      for (size_t i = 0; i < key_error.size(); ++i) {
        example.error[i] =
            token.importance[0] * key_error[i] + token.importance[1] * value_error[i];
      }
      example.error.back() = 0;
    }
  }
  return examples;
}

int Label(const Example& example, double tolerance) {
  int label = 0;
  while (example.error[label] > tolerance) ++label;  // the last has no error
  return label;
}

double FindTolerance(const std::vector<Example>& examples) {
  std::vector<double> errors;
  for (const Example& example : examples) errors.push_back(example.error[0]);
  const auto middle = errors.begin() + static_cast<ptrdiff_t>((errors.size() - 1) / 2);
  std::nth_element(errors.begin(), middle, errors.end());
  return *middle;
}

// The last fifth of each label's examples, shuffled, is held out.
void Split(std::vector<Example> examples, Random& random, std::vector<Example>& learned,
           std::vector<Example>& held_out) {
  random.Shuffle(examples);
  for (int label = 0; label < kClasses; ++label) {
    std::vector<Example> of_label;
    std::copy_if(examples.begin(), examples.end(), std::back_inserter(of_label),
                 [&](const Example& example) { return example.label == label; });
    const auto kept = of_label.end() - static_cast<ptrdiff_t>(of_label.size() / kHeldOutShare);
    learned.insert(learned.end(), of_label.begin(), kept);
    held_out.insert(held_out.end(), kept, of_label.end());
  }
}

void SetScaling(const std::vector<Example>& examples, LearnedModel& model) {
  for (int f = 0; f < kFeatures; ++f) {
    double sum = 0, squares = 0;
    for (const Example& example : examples) {
      sum += example.features[f];
      squares += double{example.features[f]} * example.features[f];
    }
    const auto count = static_cast<double>(examples.size());
    const double mean = sum / count;
    model.centers[f] = static_cast<float>(mean);
    model.spreads[f] = std::max(
        static_cast<float>(std::sqrt(std::max(squares / count - mean * mean, 0.0))), kMinSpread);
  }
}

Matrix Scores(const LearnedModel& model, absl::Span<const Example* const> examples) {
  Matrix scores(examples.size(), kFeatures);
  for (size_t i = 0; i < examples.size(); ++i) {
    for (int f = 0; f < kFeatures; ++f) {
      scores(static_cast<Eigen::Index>(i), f) =
          (examples[i]->features[f] - model.centers[f]) / model.spreads[f];
    }
  }
  return scores;
}

// Of the loss by the outputs, which are replaced by it.
void LossSlopes(absl::Span<const Example* const> examples, double tolerance,
                const LearnedFitOptions& options, Matrix& outputs) {
  for (size_t i = 0; i < examples.size(); ++i) {
    auto row = outputs.row(static_cast<Eigen::Index>(i)).array();
    row = (row - row.maxCoeff()).exp();
    row /= row.sum();                   // probabilities
    std::array<double, kClasses> gain;  // what a class takes from the loss, per probability
    double mean_gain = 0;
    for (int k = 0; k < kClasses; ++k) {
      const double cost = kBits[k] / kBits.back();
      const double quality = 1 / (1 + examples[i]->error[k] / tolerance);
      gain[k] = options.gamma * quality - options.beta * cost;
      mean_gain += row(k) * gain[k];
    }
    for (int k = 0; k < kClasses; ++k) {
      const double target = k == examples[i]->label ? 1 : 0;
      row(k) =
          static_cast<float>(options.alpha * (row(k) - target) - row(k) * (gain[k] - mean_gain));
    }
  }
}

std::vector<int> Choices(const Network& network, const std::vector<float>& parameters,
                         const LearnedModel& model, const std::vector<Example>& examples) {
  std::vector<const Example*> refs;
  for (const Example& example : examples) refs.push_back(&example);
  Network::Activations activations = {Scores(model, refs)};
  network.Forward(parameters, activations);
  std::vector<int> choices;
  for (Eigen::Index i = 0; i < activations.back().rows(); ++i) {
    Eigen::Index best;
    activations.back().row(i).maxCoeff(&best);
    choices.push_back(static_cast<int>(best));
  }
  return choices;
}

double Accuracy(const std::vector<int>& choices, const std::vector<Example>& examples) {
  double right = 0;
  for (size_t i = 0; i < examples.size(); ++i) right += choices[i] == examples[i].label ? 1 : 0;
  return examples.empty() ? 0 : right / static_cast<double>(examples.size());
}

void CopyParameters(const Network& network, const std::vector<float>& parameters,
                    LearnedModel& model) {
  const auto copy = [&](size_t offset, size_t count, auto to) {
    std::copy_n(parameters.begin() + static_cast<ptrdiff_t>(offset), count, to);
  };
  model.weights1.resize(size_t{kFeatures} * kHidden);
  model.bias1.resize(kHidden);
  model.weights2.resize(size_t{kHidden} * kHidden);
  model.bias2.resize(kHidden);
  model.weights3.resize(size_t{kHidden} * kClasses);
  copy(network.weights_offset(0), model.weights1.size(), model.weights1.begin());
  copy(network.biases_offset(0), kHidden, model.bias1.begin());
  copy(network.weights_offset(1), model.weights2.size(), model.weights2.begin());
  copy(network.biases_offset(1), kHidden, model.bias2.begin());
  copy(network.weights_offset(2), model.weights3.size(), model.weights3.begin());
  copy(network.biases_offset(2), kClasses, model.bias3.begin());
}

}  // namespace

LearnedFit FitLearned(absl::Span<const SamplesOfContext> contexts,
                      const std::array<float, 3>& key_error,
                      const std::array<float, 3>& value_error, const LearnedFitOptions& options,
                      ThreadPool& pool, absl::FunctionRef<void(size_t steps)> progress) {
  std::vector<Example> examples = MakeExamples(contexts, key_error, value_error);
  LearnedFit fit;
  fit.tokens = examples.size();
  fit.tolerance = FindTolerance(examples);
  for (Example& example : examples) example.label = Label(example, fit.tolerance);
  Random random(options.seed);
  std::vector<Example> learned, held_out;
  Split(std::move(examples), random, learned, held_out);
  SetScaling(learned, fit.model);

  const Network network({kFeatures, kHidden, kHidden, kClasses});
  std::vector<float> parameters(network.num_parameters());
  network.Initialize(absl::MakeSpan(parameters), random);
  std::vector<const Example*> batch(options.batch);
  size_t steps = 0;
  Train(
      {.steps = options.steps, .learning_rate = kRate, .batch = options.batch}, pool, parameters,
      [&] {
        for (const Example*& example : batch) example = &learned[random.Below(learned.size())];
        progress(++steps);
      },
      [&](int begin, int end, absl::Span<float> gradient) {
        const auto part = absl::MakeConstSpan(batch).subspan(begin, end - begin);
        Network::Activations activations = {Scores(fit.model, part)};
        network.Forward(parameters, activations);
        Matrix slope = activations.back();
        LossSlopes(part, fit.tolerance, options, slope);
        network.Backward(parameters, activations, slope, gradient);
      });

  CopyParameters(network, parameters, fit.model);
  fit.learned_accuracy = Accuracy(Choices(network, parameters, fit.model, learned), learned);
  const std::vector<int> choices = Choices(network, parameters, fit.model, held_out);
  fit.held_out_accuracy = Accuracy(choices, held_out);
  for (size_t i = 0; i < held_out.size(); ++i) {
    const double share = 1 / static_cast<double>(held_out.size());
    fit.labelled[held_out[i].label] += share;
    fit.chosen[choices[i]] += share;
  }
  return fit;
}

}  // namespace whit
