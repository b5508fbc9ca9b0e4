// CLIP's byte pair encoding.
#pragma once

#include <array>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <unordered_map>
#include <utility>

#include "tokenizer.hpp"

namespace eao {

/// Encodes the words of a sentence, joined by blanks, as eao.data.text.ClipText does.
class ClipBpe : public Tokenizer {
 public:
  /// Throws BundleError if the tokenizer has settings other than CLIP's.
  explicit ClipBpe(const nlohmann::json& json);

  std::vector<std::int64_t> encode(std::string_view sentence) const override;

 private:
  struct Merge {
    std::size_t rank;
    std::int64_t id;
  };

  void encode_piece(std::u32string_view piece, std::vector<std::int64_t>& ids) const;

  std::unordered_map<std::string, std::int64_t> vocabulary_;
  std::map<std::pair<std::int64_t, std::int64_t>, Merge> merges_;
  std::array<std::string, 256> letters_;  // the printable character that stands for each byte
  std::int64_t unknown_ = 0;
};

}  // namespace eao
