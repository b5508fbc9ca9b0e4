#include "word_piece.hpp"

#include <nlohmann/json.hpp>

#include "eao/error.hpp"
#include "unicode.hpp"

namespace eao {

namespace {

void require(bool holds, const std::string& what) {
  if (!holds) {
    throw BundleError("the tokenizer's " + what + " is not that of an uncased BERT model",
                      "use such a model, or embed through a Triton server");
  }
}

}  // namespace

WordPiece::WordPiece(const nlohmann::json& json) {
  const auto& normalizer = json.at("normalizer");
  const auto& strip_accents = normalizer.at("strip_accents");
  require(normalizer.at("type") == "BertNormalizer" && normalizer.at("clean_text") == true &&
              normalizer.at("handle_chinese_chars") == true && normalizer.at("lowercase") == true &&
              (strip_accents.is_null() || strip_accents == true),
          "normalizer");
  require(json.at("pre_tokenizer").at("type") == "BertPreTokenizer", "pre_tokenizer");
  for (const auto& token : json.at("added_tokens")) {
    require(token.at("normalized") == false && token.at("single_word") == false && token.at("lstrip") == false &&
                token.at("rstrip") == false,
            "added token " + token.at("content").dump());
    special_.emplace_back(token.at("content").get<std::string>(), token.at("id").get<std::int64_t>());
  }
  const auto& model = json.at("model");
  vocabulary_ = model.at("vocab").get<std::unordered_map<std::string, std::int64_t>>();
  prefix_ = model.at("continuing_subword_prefix").get<std::string>();
  longest_ = model.at("max_input_chars_per_word").get<std::size_t>();
  const auto unknown = vocabulary_.find(model.at("unk_token").get<std::string>());
  require(unknown != vocabulary_.end(), "unknown token");
  unknown_ = unknown->second;
}

std::vector<std::int64_t> WordPiece::encode(std::string_view sentence) const {
  std::vector<std::int64_t> ids;
  // Special tokens are looked for in the text as it was written: the leftmost, and of several there the longest.
  while (!sentence.empty()) {
    std::size_t at = std::string_view::npos;
    const std::pair<std::string, std::int64_t>* next = nullptr;
    for (const auto& token : special_) {
      const auto found = sentence.find(token.first);
      if (found == std::string_view::npos) continue;
      if (found < at || (found == at && token.first.size() > next->first.size())) {
        at = found;
        next = &token;
      }
    }
    encode_plain(sentence.substr(0, at), ids);
    if (next == nullptr) break;
    ids.push_back(next->second);
    sentence.remove_prefix(at + next->first.size());
  }
  return ids;
}

void WordPiece::encode_plain(std::string_view text, std::vector<std::int64_t>& ids) const {
  const std::u32string normal = normalize_bert(decode_utf8(text));
  const std::u32string_view whole = normal;
  std::size_t begin = 0;
  for (std::size_t at = 0; at <= whole.size(); ++at) {
    const bool ends = at == whole.size() || whole[at] == U' ' || is_punctuation(whole[at]);
    if (!ends) continue;
    if (at > begin) encode_word(whole.substr(begin, at - begin), ids);
    if (at < whole.size() && whole[at] != U' ') encode_word(whole.substr(at, 1), ids);
    begin = at + 1;
  }
}

void WordPiece::encode_word(std::u32string_view word, std::vector<std::int64_t>& ids) const {
  if (word.size() > longest_) {
    ids.push_back(unknown_);
    return;
  }
  const std::size_t before = ids.size();
  for (std::size_t begin = 0; begin < word.size();) {
    std::size_t end = word.size();
    for (; end > begin; --end) {
      const auto found = vocabulary_.find((begin ? prefix_ : "") + encode_utf8(word.substr(begin, end - begin)));
      if (found == vocabulary_.end()) continue;
      ids.push_back(found->second);
      break;
    }
    if (end == begin) {  // one piece is missing: the whole word is unknown
      ids.resize(before);
      ids.push_back(unknown_);
      return;
    }
    begin = end;
  }
}

}  // namespace eao
