#include "text.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "eao/error.hpp"
#include "split.hpp"
#include "unicode.hpp"

namespace eao {

namespace {

constexpr const char* kFacts = "words.json";
constexpr const char* kNetwork = "words.onnx";
constexpr const char* kTokenizer = "words.tokenizer.json";

/// A file of the text encoder, checked.
std::filesystem::path text_file(const Manifest& manifest, const std::string& name, bool verify) {
  const FileEntry* file = manifest.text_file(name);
  if (file == nullptr) {
    throw BundleError("the bundle " + manifest.folder.string() + " lacks text/" + name + ", which C++ reads sentences with",
                      "export it again with this version of eao and an encoder that reads text");
  }
  manifest.check_file(*file, verify);
  return manifest.folder / file->name;
}

/// The sentence in quotes, cut if it is long.
std::string quoted(const std::string& sentence) {
  std::u32string text = decode_utf8(sentence);
  if (text.size() > 80) text = text.substr(0, 77) + U"...";
  return "'" + encode_utf8(text) + "'";
}

[[noreturn]] void refuse_wordless(const std::string& sentence) {
  if (split_words(sentence).empty()) {
    throw DataError("the sentence " + quoted(sentence) + " has no words", "write at least one word");
  }
  throw DataError("none of the words in " + quoted(sentence) + " is in the vocabulary",
                  "use other words; word2vec vocabularies tell upper from lower case");
}

}  // namespace

TextEncoder::TextEncoder(const Manifest& manifest, const Options& options) {
  const auto path = text_file(manifest, kFacts, options.verify);
  std::ifstream file(path, std::ios::binary);
  try {
    const auto facts = nlohmann::json::parse(file);
    max_words_ = facts.at("max_words").get<std::size_t>();
    dim_ = facts.at("dim").get<std::size_t>();
    if (facts.at("encoder") == "word2vec") {
      open_vectors(manifest, facts.at("file").get<std::string>(), options.verify);
      return;
    }
    length_ = facts.at("length").get<std::size_t>();
    start_ = facts.at("start").get<std::int64_t>();
    end_ = facts.at("end").get<std::int64_t>();
    pad_ = facts.at("pad").get<std::int64_t>();
    unknown_ = facts.at("unknown").get<std::int64_t>();
  } catch (const nlohmann::json::exception& error) {
    throw BundleError(path.string() + " is damaged: " + error.what(), "export the bundle again");
  }
  if (length_ < 3) throw BundleError(path.string() + " leaves no room for words: length " + std::to_string(length_));
  open_network(manifest, options);
}

void TextEncoder::open_vectors(const Manifest& manifest, const std::string& file, bool verify) {
  vectors_ = std::make_unique<WordVectors>(text_file(manifest, file, verify));
  if (vectors_->dim() != dim_) {
    throw BundleError("text/" + file + " has vectors of width " + std::to_string(vectors_->dim()) + ", but words.json says " +
                          std::to_string(dim_),
                      "export the bundle again");
  }
}

void TextEncoder::open_network(const Manifest& manifest, const Options& options) {
  tokenizer_ = load_tokenizer(text_file(manifest, kTokenizer, options.verify));
  const auto graph = text_file(manifest, kNetwork, options.verify);
  const std::string weights = std::string(kNetwork) + ".data";  // there if the graph could not hold them
  if (manifest.text_file(weights) != nullptr) text_file(manifest, weights, options.verify);
  network_ = open_engine("onnxruntime", graph, options.threads);
}

Tensors TextEncoder::encode(const std::vector<std::string>& sentences) const {
  const std::size_t rows = sentences.size();
  const std::size_t width = max_words_ * dim_;
  std::vector<float> text(rows * width, 0.0F);
  std::vector<std::size_t> counts;
  if (vectors_ != nullptr) {
    for (std::size_t i = 0; i < rows; ++i) counts.push_back(look_up(sentences[i], text.data() + i * width));
  } else {
    counts = run_network(sentences, text);
  }
  Tensor::Mask mask(rows * max_words_, 0);
  for (std::size_t i = 0; i < rows; ++i) {
    if (counts[i] == 0) refuse_wordless(sentences[i]);
    std::fill_n(mask.begin() + static_cast<std::ptrdiff_t>(i * max_words_), counts[i], std::uint8_t{1});
  }
  Tensors tensors;
  tensors.emplace("text", Tensor({rows, max_words_, dim_}, std::move(text)));
  tensors.emplace("text_mask", Tensor({rows, max_words_}, std::move(mask)));
  return tensors;
}

std::size_t TextEncoder::look_up(const std::string& sentence, float* rows) const {
  std::size_t count = 0;
  for (const auto& word : split_words(sentence)) {
    if (count == max_words_) break;
    if (vectors_->copy(word, rows + count * dim_)) ++count;
  }
  return count;
}

std::vector<std::size_t> TextEncoder::run_network(const std::vector<std::string>& sentences,
                                                  std::vector<float>& text) const {
  std::vector<std::vector<std::int64_t>> pieces;
  std::size_t longest = 1;
  for (const auto& sentence : sentences) {
    pieces.push_back(tokenizer_->encode(sentence));
    auto& ids = pieces.back();
    ids.resize(std::min(ids.size(), length_ - 2));
    // A sentence of unknown pieces only says nothing; beside known ones they hold a place.
    const auto is_unknown = [this](std::int64_t id) { return id == unknown_; };
    if (std::all_of(ids.begin(), ids.end(), is_unknown)) refuse_wordless(sentence);
    longest = std::max(longest, ids.size() + 2);
  }
  const std::size_t rows = sentences.size();
  std::vector<std::int64_t> ids(rows * longest, pad_);
  std::vector<std::int64_t> attention(rows * longest, 0);
  for (std::size_t i = 0; i < rows; ++i) {
    auto* row = ids.data() + i * longest;
    row[0] = start_;
    std::copy(pieces[i].begin(), pieces[i].end(), row + 1);
    row[pieces[i].size() + 1] = end_;
    std::fill_n(attention.data() + i * longest, pieces[i].size() + 2, std::int64_t{1});
  }
  Tensors inputs;
  inputs.emplace("input_ids", Tensor({rows, longest}, std::move(ids)));
  inputs.emplace("attention_mask", Tensor({rows, longest}, std::move(attention)));
  const Output states = network_->run(inputs);
  if (states.shape != Shape{rows, longest, dim_}) {
    throw BundleError("text/words.onnx gave states of shape " + describe(states.shape), "export the bundle again");
  }
  std::vector<std::size_t> counts;
  for (std::size_t i = 0; i < rows; ++i) {
    counts.push_back(std::min(pieces[i].size(), max_words_));
    const float* first = states.values.data() + (i * longest + 1) * dim_;  // behind the start
    std::copy_n(first, counts[i] * dim_, text.data() + i * max_words_ * dim_);
  }
  return counts;
}

}  // namespace eao
