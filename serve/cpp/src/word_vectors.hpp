// Word vectors in word2vec's binary format.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>
#include <unordered_map>

#include "mapped_file.hpp"

namespace eao {

/// The file stays mapped: a lookup reads the few pages it needs, and processes share them.
class WordVectors {
 public:
  /// Throws BundleError if the file is damaged.
  explicit WordVectors(const std::filesystem::path& path);

  std::size_t dim() const noexcept { return dim_; }

  /// Copy the vector of a word to `target`, `dim()` floats; false if the word is not in the vocabulary.
  bool copy(std::string_view word, float* target) const;

 private:
  MappedFile file_;
  std::size_t dim_ = 0;
  std::unordered_map<std::string_view, const char*> places_;
};

}  // namespace eao
