// BERT's uncased WordPiece.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <unordered_map>
#include <utility>

#include "tokenizer.hpp"

namespace eao {

class WordPiece : public Tokenizer {
 public:
  /// Throws BundleError if the tokenizer has settings other than those of uncased BERT models.
  explicit WordPiece(const nlohmann::json& json);

  std::vector<std::int64_t> encode(std::string_view sentence) const override;

 private:
  void encode_plain(std::string_view text, std::vector<std::int64_t>& ids) const;
  void encode_word(std::u32string_view word, std::vector<std::int64_t>& ids) const;

  std::unordered_map<std::string, std::int64_t> vocabulary_;
  std::vector<std::pair<std::string, std::int64_t>> special_;
  std::string prefix_;
  std::size_t longest_ = 0;
  std::int64_t unknown_ = 0;
};

}  // namespace eao
