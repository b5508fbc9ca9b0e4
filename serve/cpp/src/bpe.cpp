#include "bpe.hpp"

#include <functional>
#include <nlohmann/json.hpp>
#include <queue>
#include <tuple>

#include "eao/error.hpp"
#include "split.hpp"
#include "unicode.hpp"

namespace eao {

namespace {

constexpr const char* kSuffix = "</w>";
constexpr std::int64_t kGone = -1;

/// A part of a word and its neighbours; those beyond either end have a place behind the last.
struct Symbol {
  std::int64_t id;
  std::size_t previous;
  std::size_t next;
};

void require(bool holds, const std::string& what) {
  if (!holds) {
    throw BundleError("the tokenizer's " + what + " is not CLIP's", "use a CLIP model, or embed through a Triton server");
  }
}

/// Printable bytes stand for themselves, the others for characters from U+0100 on.
std::array<std::string, 256> byte_letters() {
  std::array<std::string, 256> letters;
  char32_t other = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
    letters[byte] = encode_utf8(std::u32string(1, printable ? byte : other++));
  }
  return letters;
}

/// Pieces of one word: contractions, runs of letters, single digits, and runs of what is left.
std::vector<std::u32string_view> split_pieces(std::u32string_view word) {
  static constexpr std::u32string_view kContractions[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
  std::vector<std::u32string_view> pieces;
  while (!word.empty()) {
    std::size_t length = 0;
    for (const auto contraction : kContractions) {
      if (word.substr(0, contraction.size()) == contraction) {
        length = contraction.size();
        break;
      }
    }
    if (length == 0 && is_letter(word[0])) {
      while (length < word.size() && is_letter(word[length])) ++length;
    } else if (length == 0 && is_number(word[0])) {
      length = 1;
    } else if (length == 0) {
      while (length < word.size() && !is_letter(word[length]) && !is_number(word[length])) ++length;
    }
    pieces.push_back(word.substr(0, length));
    word.remove_prefix(length);
  }
  return pieces;
}

}  // namespace

ClipBpe::ClipBpe(const nlohmann::json& json) : letters_(byte_letters()) {
  const auto& steps = json.at("normalizer").at("normalizers");
  require(steps.size() == 3 && steps[0].at("type") == "NFC" && steps[1].at("type") == "Replace" &&
              steps[2].at("type") == "Lowercase",
          "normalizer");
  const auto& splits = json.at("pre_tokenizer").at("pretokenizers");
  require(splits.size() == 2 && splits[0].at("type") == "Split" && splits[1].at("type") == "ByteLevel",
          "pre_tokenizer");
  for (const auto& token : json.at("added_tokens")) {
    // Such a token is never met, since words hold letters and apostrophes only.
    const auto content = token.at("content").get<std::string>();
    require(split_words(content) != std::vector<std::string>{content}, "added token " + content);
  }
  const auto& model = json.at("model");
  require(model.value("continuing_subword_prefix", nlohmann::json("")) == "" && model.value("fuse_unk", false) == false,
          "model");
  vocabulary_ = model.at("vocab").get<std::unordered_map<std::string, std::int64_t>>();
  unknown_ = vocabulary_.at(model.at("unk_token").get<std::string>());
  std::size_t rank = 0;
  for (const auto& merge : model.at("merges")) {
    std::string left, right;
    if (merge.is_array()) {
      left = merge.at(0).get<std::string>(), right = merge.at(1).get<std::string>();
    } else {
      const auto text = merge.get<std::string>();
      left = text.substr(0, text.find(' ')), right = text.substr(text.find(' ') + 1);
    }
    merges_.try_emplace({vocabulary_.at(left), vocabulary_.at(right)}, Merge{rank++, vocabulary_.at(left + right)});
  }
}

std::vector<std::int64_t> ClipBpe::encode(std::string_view sentence) const {
  std::vector<std::int64_t> ids;
  for (const auto& word : split_words(sentence)) {
    const std::u32string normal = normalize_clip(decode_utf8(word));
    for (const auto piece : split_pieces(normal)) encode_piece(piece, ids);
  }
  return ids;
}

void ClipBpe::encode_piece(std::u32string_view piece, std::vector<std::int64_t>& ids) const {
  const std::string bytes = encode_utf8(piece);
  std::vector<Symbol> symbols;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const auto& letter = letters_[static_cast<unsigned char>(bytes[i])];
    const auto found = vocabulary_.find(i + 1 == bytes.size() ? letter + kSuffix : letter);
    symbols.push_back({found == vocabulary_.end() ? unknown_ : found->second, i - 1, i + 1});
  }
  const std::size_t end = symbols.size();
  const auto merge_at = [&](std::size_t place) {  // what the symbol and its successor become, or null
    const std::size_t next = symbols[place].next;
    if (symbols[place].id == kGone || next >= end) return merges_.end();
    return merges_.find({symbols[place].id, symbols[next].id});
  };

  // The pair that was learned first is merged, the leftmost of equals.
  using Candidate = std::tuple<std::size_t, std::size_t, std::int64_t>;  // rank, place, what it becomes
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto propose = [&](std::size_t place) {
    const auto merge = merge_at(place);
    if (merge != merges_.end()) candidates.emplace(merge->second.rank, place, merge->second.id);
  };
  for (std::size_t place = 0; place < end; ++place) propose(place);
  while (!candidates.empty()) {
    const auto place = std::get<1>(candidates.top());
    const auto id = std::get<2>(candidates.top());
    candidates.pop();
    const auto merge = merge_at(place);
    if (merge == merges_.end() || merge->second.id != id) continue;  // one of the two was merged since
    const std::size_t gone = symbols[place].next;
    symbols[place].id = id;
    symbols[place].next = symbols[gone].next;
    symbols[gone].id = kGone;
    if (symbols[place].next < end) symbols[symbols[place].next].previous = place;
    if (symbols[place].previous < end) propose(symbols[place].previous);
    propose(place);
  }
  for (const auto& symbol : symbols) {
    if (symbol.id != kGone) ids.push_back(symbol.id);
  }
}

}  // namespace eao
