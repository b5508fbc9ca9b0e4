// Sentences as text tokens, as eao.data.text makes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "eao/encoder.hpp"
#include "engine.hpp"
#include "manifest.hpp"
#include "tokenizer.hpp"
#include "word_vectors.hpp"

namespace eao {

/// The frozen text encoder of a bundle. Safe to call from several threads.
class TextEncoder {
 public:
  /// Throws BundleError if the bundle lacks its files, or they were changed.
  TextEncoder(const Manifest& manifest, const Options& options);

  /// "text", (B, max_words, dim) zero padded, and "text_mask", (B, max_words). Throws DataError if a sentence has no
  /// known word.
  Tensors encode(const std::vector<std::string>& sentences) const;

 private:
  void open_vectors(const Manifest& manifest, const std::string& file, bool verify);
  void open_network(const Manifest& manifest, const Options& options);
  std::size_t look_up(const std::string& sentence, float* rows) const;
  std::vector<std::size_t> run_network(const std::vector<std::string>& sentences, std::vector<float>& text) const;

  std::size_t max_words_ = 0;
  std::size_t dim_ = 0;
  std::unique_ptr<WordVectors> vectors_;

  // Of encoders with a network.
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> network_;
  std::size_t length_ = 0;  // the most ids of a sentence, special ones included
  std::int64_t start_ = 0;
  std::int64_t end_ = 0;
  std::int64_t pad_ = 0;
  std::int64_t unknown_ = 0;
};

}  // namespace eao
