#include "eao/encoder.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "source.hpp"

namespace eao {

namespace {

constexpr const char* kScheme = "triton://";
constexpr std::size_t kBatch = 16;  // sentences computed at once

}  // namespace

Encoder::Encoder(std::unique_ptr<Source> source) : source_(std::move(source)) {}
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder& Encoder::operator=(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

Encoder Encoder::open(const std::string& source, Options options) {
  if (source.rfind(kScheme, 0) == 0) return Encoder(connect_triton(source, options));
  return Encoder(open_bundle(source, options));
}

std::vector<std::string> Encoder::encoders() const { return source_->encoders(); }

std::size_t Encoder::dim() const { return source_->dim(); }

std::string Encoder::model_hash() const { return source_->model_hash(); }

Embeddings Encoder::embed(const std::vector<std::string>& sentences) const {
  if (sentences.empty()) throw DataError("an empty list of sentences", "give at least one");
  Embeddings all;
  for (std::size_t first = 0; first < sentences.size(); first += kBatch) {
    const auto begin = sentences.begin() + static_cast<std::ptrdiff_t>(first);
    const auto count = std::min(kBatch, sentences.size() - first);
    const Embeddings part = source_->embed_sentences({begin, begin + static_cast<std::ptrdiff_t>(count)});
    all.rows += part.rows;
    all.dim = part.dim;
    all.values.insert(all.values.end(), part.values.begin(), part.values.end());
  }
  return all;
}

Embeddings Encoder::embed(const std::string& encoder, const Tensors& inputs) const {
  return source_->embed_tensors(encoder, inputs);
}

Tensors Encoder::text_tensors(const std::vector<std::string>& sentences) const {
  if (sentences.empty()) throw DataError("an empty list of sentences", "give at least one");
  return source_->text_tensors(sentences);
}

}  // namespace eao
