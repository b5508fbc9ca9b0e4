// A folder of engines as a source of embeddings.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "cpu.hpp"
#include "engine.hpp"
#include "manifest.hpp"
#include "source.hpp"
#include "text.hpp"

namespace eao {

namespace {

/// Why an engine is not used here; empty if it is.
std::string refusal(const EngineEntry& entry) {
  if (entry.deferred) return "it is built on first use, by Python";
  return has_engine(entry.engine) ? unproven(entry, has_exact_int8()) : "not in this build";
}

class Bundle : public Source {
 public:
  Bundle(const std::string& folder, Options options) : options_(std::move(options)), manifest_(load_manifest(folder)) {
    const auto wanted = [this](const EngineEntry& entry) { return is_wanted(entry); };
    if (std::none_of(manifest_.engines.begin(), manifest_.engines.end(), wanted)) {
      std::set<std::string> held;
      for (const auto& entry : manifest_.engines) held.insert(entry.engine + " " + entry.precision);
      std::string list;
      for (const auto& name : held) list += (list.empty() ? "" : ", ") + name;
      const std::string gap = options_.engine.empty() || options_.precision.empty() ? "" : " ";
      throw BundleError("the bundle " + folder + " has no " + options_.engine + gap + options_.precision + " engine",
                        "it has " + list);
    }
  }

  std::vector<std::string> encoders() const override {
    std::vector<std::string> names;
    for (const auto& [name, inputs] : manifest_.encoders) {
      const auto offers = [this, &name = name](const EngineEntry& e) { return e.encoder == name && is_wanted(e); };
      if (std::any_of(manifest_.engines.begin(), manifest_.engines.end(), offers)) names.push_back(name);
    }
    return names;
  }

  std::size_t dim() const override { return manifest_.embedding_dim; }

  std::string model_hash() const override { return manifest_.model_sha256; }

  Embeddings embed_sentences(const std::vector<std::string>& sentences) override {
    const auto engine = this->engine("text");
    return run(*engine, "text", text_encoder().encode(sentences));
  }

  Embeddings embed_tensors(const std::string& encoder, const Tensors& inputs) override {
    return run(*engine(encoder), encoder, inputs);
  }

  Tensors text_tensors(const std::vector<std::string>& sentences) override { return text_encoder().encode(sentences); }

 private:
  bool is_wanted(const EngineEntry& entry) const {
    return (options_.engine.empty() || options_.engine == entry.engine) &&
           (options_.precision.empty() || options_.precision == entry.precision);
  }

  /// The first engine of an encoder, in the manifest's order, that was asked for and that this build runs.
  const EngineEntry& entry(const std::string& encoder) const {
    std::string reasons;
    for (const auto& entry : manifest_.engines) {
      if (entry.encoder != encoder || !is_wanted(entry)) continue;
      const std::string reason = refusal(entry);
      if (reason.empty()) return entry;
      reasons += (reasons.empty() ? "" : "; ") + entry.engine + " " + entry.precision + ": " + reason;
    }
    if (reasons.empty()) {
      std::string offered;
      for (const auto& name : encoders()) offered += (offered.empty() ? "" : ", ") + name;
      throw DataError("the bundle " + manifest_.folder.string() + " has no encoder '" + encoder + "'",
                      "it has " + offered + "; export again with --encoder all");
    }
    throw BundleError("no engine of encoder " + encoder + " in " + manifest_.folder.string() + " runs here", reasons);
  }

  std::shared_ptr<Engine> engine(const std::string& encoder) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& engine = engines_[encoder];
    if (engine == nullptr) {
      const EngineEntry& found = entry(encoder);
      for (const auto& file : found.files) manifest_.check_file(file, options_.verify);
      engine = open_engine(found.engine, manifest_.folder / found.files.front().name, options_.threads,
                           found.version_compatible);
    }
    return engine;
  }

  const TextEncoder& text_encoder() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (text_ == nullptr) text_ = std::make_unique<TextEncoder>(manifest_, options_);
    return *text_;
  }

  Embeddings run(Engine& engine, const std::string& encoder, const Tensors& inputs) const {
    check_inputs(manifest_, encoder, inputs);
    const std::size_t rows = inputs.begin()->second.shape().front();
    Output output = engine.run(inputs);
    if (output.shape.size() != 2 || output.shape[0] != rows) {
      throw BundleError("the engine of encoder " + encoder + " gave " + describe(output.shape) + " for " +
                            std::to_string(rows) + " rows",
                        "export the bundle again");
    }
    return {rows, output.shape[1], std::move(output.values)};
  }

  const Options options_;
  const Manifest manifest_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Engine>> engines_;
  std::unique_ptr<TextEncoder> text_;
};

}  // namespace

std::unique_ptr<Source> open_bundle(const std::string& folder, const Options& options) {
  return std::make_unique<Bundle>(folder, options);
}

}  // namespace eao
