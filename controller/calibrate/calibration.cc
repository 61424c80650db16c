#include "controller/calibrate/calibration.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "controller/calibrate/importance_samples.h"
#include "controller/calibrate/importance_training.h"
#include "controller/calibrate/key_calibration.h"
#include "controller/calibrate/learned_training.h"
#include "controller/calibrate/price_points.h"
#include "controller/calibrate/rung_costs.h"
#include "kvpool/key_means.h"

namespace whit {
namespace {

size_t TokensOf(absl::Span<const TextWindow> windows) {
  size_t tokens = 0;
  for (const TextWindow& window : windows) tokens += window.tokens.size();
  return tokens;
}

// Windows held out, of the two shortest contexts: enough to tell rungs apart, few enough to be
// quick.
std::vector<TextWindow> WindowsForCosts(absl::Span<const TextWindow> windows) {
  constexpr size_t kTokensOfContext = 2048;
  std::vector<TextWindow> chosen;
  std::map<int, size_t> tokens;  // by context
  for (size_t i = windows.size(); i-- > 0;) {
    const TextWindow& window = windows[i];
    if (!window.held_out || (tokens.size() == 2 && !tokens.contains(window.context))) continue;
    if (tokens[window.context] >= kTokensOfContext) continue;
    tokens[window.context] += window.tokens.size();
    chosen.push_back(window);
  }
  return chosen;
}

using Notes = std::vector<PolicyFile::Note>;

void DescribeTexts(absl::Span<const CalibrationText> texts, absl::Span<const TextWindow> windows,
                   Notes& notes) {
  for (size_t i = 0; i < texts.size(); ++i) {
    size_t learned = 0, held_out = 0;
    for (const TextWindow& window : windows) {
      if (window.text == static_cast<int>(i)) {
        (window.held_out ? held_out : learned) += window.tokens.size();
      }
    }
    notes.push_back({"text", absl::StrCat(texts[i].name, ": ", texts[i].tokens.size(), " tokens, ",
                                          learned, " learned from, ", held_out, " held out")});
  }
}

void DescribeKeys(const KeyCalibration& keys, Notes& notes) {
  notes.push_back({"key_mean_tokens", absl::StrCat(keys.learned_tokens)});
  notes.push_back({"key_energy_explained", absl::StrFormat("%.3f", keys.key_energy_explained)});
  std::vector<std::string> layers;
  for (double explained : keys.layer_key_energy_explained) {
    layers.push_back(absl::StrFormat("%.2f", explained));
  }
  notes.push_back({"key_energy_explained_by_layer", absl::StrJoin(layers, " ")});
}

void DescribeImportance(const CollectedSamples& samples, const ImportanceFit& fit, Notes& notes) {
  for (size_t i = 0; i < fit.held_out.size(); ++i) {
    const ImportanceLoss& loss = fit.held_out[i];
    notes.push_back(
        {absl::StrCat("importance_loss_", loss.context),
         absl::StrFormat("network %.3f, linear %.3f, constant %.3f (%d samples held out, %d "
                         "learned from)",
                         loss.network, loss.linear, loss.constant, loss.samples,
                         samples.contexts[i].learned.size())});
  }
  const auto list = [](const std::array<float, 3>& errors) {
    return absl::StrFormat("%.4f %.5f %.7f at 2, 4, 8 bits", errors[0], errors[1], errors[2]);
  };
  notes.push_back({"quantizer_error_of_keys", list(samples.key_error)});
  notes.push_back({"quantizer_error_of_values", list(samples.value_error)});
}

void DescribeCosts(const RungDivergence& divergence, const RungCosts& costs, size_t tokens,
                   Notes& notes) {
  std::vector<std::string> rungs;
  for (int rung = 0; rung < kNumRungs - 1; ++rung) {
    rungs.push_back(
        absl::StrFormat("%s %.5f", RungName(static_cast<Rung>(rung)), divergence[rung]));
  }
  notes.push_back({"kl_divergence_of_rungs",
                   absl::StrCat(absl::StrJoin(rungs, ", "), " (", tokens, " tokens)")});
  notes.push_back({"cost_of_2_and_4_bits",
                   absl::StrFormat("keys %.2f %.2f, values %.2f %.2f times the estimate",
                                   costs.key[0], costs.key[1], costs.value[0], costs.value[1])});
}

void DescribeLearned(const LearnedFit& fit, const LearnedFitOptions& options, Notes& notes) {
  notes.push_back({"learned_loss", absl::StrFormat("alpha %g, beta %g, gamma %g", options.alpha,
                                                   options.beta, options.gamma)});
  notes.push_back({"learned_tolerance", absl::StrFormat("%.3g", fit.tolerance)});
  notes.push_back({"learned_accuracy",
                   absl::StrFormat("%.3f of a fifth of %d tokens, held out; %.3f of the others",
                                   fit.held_out_accuracy, fit.tokens, fit.learned_accuracy)});
  std::vector<std::string> shares;
  for (size_t k = 0; k < kLearnedRungs.size(); ++k) {
    shares.push_back(absl::StrFormat("%s %.3f %.3f", RungName(kLearnedRungs[k]), fit.labelled[k],
                                     fit.chosen[k]));
  }
  notes.push_back({"learned_shares_labelled_and_chosen", absl::StrJoin(shares, ", ")});
}

}  // namespace

absl::StatusOr<PolicyFile> Calibrate(Model& model, const ModelIdentity& identity,
                                     absl::Span<const CalibrationText> texts,
                                     CalibrationOptions options, CalibrationProgress progress) {
  const ModelConfig& config = model.config();
  ThreadPool& pool = model.thread_pool();
  std::erase_if(options.contexts, [&](int context) { return context > config.context_length; });
  if (options.contexts.empty()) options.contexts = {config.context_length};
  options.mean_context = std::min(options.mean_context, options.contexts.back());

  const absl::StatusOr<std::vector<TextWindow>> mean_windows =
      DrawWindows(texts, {.tokens = options.mean_tokens,
                          .context = options.mean_context,
                          .seed = options.seed,
                          .bos_id = options.bos_id});
  if (!mean_windows.ok()) return mean_windows.status();
  const absl::StatusOr<std::vector<TextWindow>> windows =
      DrawMixedWindows(texts, {.contexts = options.contexts,
                               .tokens = options.tokens_of_context,
                               .seed = options.seed,
                               .bos_id = options.bos_id});
  if (!windows.ok()) return windows.status();
  const size_t mean_tokens = TokensOf(*mean_windows), tokens = TokensOf(*windows);

  const absl::StatusOr<KeyCalibration> keys =
      CalibrateKeys(model, *mean_windows, options.contexts, [&](size_t done) {
        progress({"measuring keys", "tokens"}, done, mean_tokens);
      });
  if (!keys.ok()) return keys.status();
  KeyMeans means({.num_layers = config.num_layers,
                  .num_kv_heads = config.num_kv_heads,
                  .head_dim = config.head_dim,
                  .inverse_frequencies = config.rope_inverse_frequencies},
                 keys->key_means);
  means.Prepare(options.contexts.back());

  const absl::StatusOr<CollectedSamples> samples = CollectSamples(
      model, means, keys->query_means, *windows, {.seed = options.seed}, [&](size_t done) {
        progress({"observing attention", "tokens"}, done, tokens);
      });
  if (!samples.ok()) return samples.status();

  const int num_pairs = config.num_layers * config.num_kv_heads;
  const size_t steps = size_t{2} * options.training_steps;
  ImportanceFit fit = FitImportance(samples->contexts, num_pairs,
                                    {.steps = options.training_steps, .seed = options.seed}, pool,
                                    [&](size_t done) {
                                      progress({"learning importance", "steps"}, done, steps);
                                    });
  fit.model.query_means = keys->query_means;
  const std::vector<float> sensitivities = MeanSensitivities(samples->contexts, num_pairs);

  const std::vector<TextWindow> cost_windows = WindowsForCosts(*windows);
  const size_t cost_tokens = kDivergenceRuns * TokensOf(cost_windows);
  model.SetKeyMeans(keys->key_means);
  const absl::StatusOr<RungDivergence> divergence =
      MeasureDivergence(model, cost_windows, [&](size_t done) {
        progress({"measuring rungs", "tokens"}, done, cost_tokens);
      });
  if (!divergence.ok()) return divergence.status();
  const RungCosts costs =
      CostsOf(*divergence, sensitivities, samples->key_error, samples->value_error);
  for (size_t i = 0; i < samples->key_error.size(); ++i) {
    fit.model.key_error[i] = costs.key[i] * samples->key_error[i];
    fit.model.value_error[i] = costs.value[i] * samples->value_error[i];
  }

  const LearnedFitOptions learned_options = {.steps = options.training_steps, .seed = options.seed};
  const LearnedFit learned = FitLearned(
      samples->contexts, fit.model.key_error, fit.model.value_error, learned_options, pool,
      [&](size_t done) {
        progress({"training the learned controller", "steps"}, done, options.training_steps);
      });

  PolicyFile file;
  file.model = identity;
  file.key_means = keys->key_means;
  file.prices =
      MeasurePrices(samples->contexts, fit.predicted,
                    {.key = fit.model.key_error, .value = fit.model.value_error}, config.head_dim);
  file.sensitivities = sensitivities;
  file.notes = {{"model", config.name}};
  DescribeTexts(texts, *windows, file.notes);
  file.notes.push_back({"contexts", absl::StrJoin(options.contexts, " ")});
  file.notes.push_back({"seed", absl::StrCat(options.seed)});
  DescribeKeys(*keys, file.notes);
  DescribeImportance(*samples, fit, file.notes);
  DescribeCosts(*divergence, costs, TokensOf(cost_windows), file.notes);
  DescribeLearned(learned, learned_options, file.notes);
  file.importance = std::move(fit.model);
  file.learned = learned.model;
  // Weights that overflow somewhere would be refused only when the file is read.
  if (absl::Status status = ParsePolicyFile(SerializePolicyFile(file)).status(); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("nothing useful can be learned of this model: ", status.message()));
  }
  return file;
}

}  // namespace whit
