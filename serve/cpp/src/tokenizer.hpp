// From sentences to token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace eao {

/// Word pieces of a sentence, without start and end.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Throws DataError if the sentence is not valid UTF-8.
  virtual std::vector<std::int64_t> encode(std::string_view sentence) const = 0;
};

/// Read a tokenizer in the format of the package tokenizers (words.tokenizer.json).
///
/// Throws BundleError if it is damaged, or is neither BERT's uncased WordPiece nor CLIP's BPE.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);

}  // namespace eao
