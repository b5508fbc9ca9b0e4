#include "split.hpp"

#include "unicode.hpp"

namespace eao {

std::vector<std::string> split_words(std::string_view sentence) {
  std::vector<std::string> words;
  std::u32string word;
  const auto finish = [&] {
    if (!word.empty()) words.push_back(encode_utf8(word));
    word.clear();
  };
  for (const char32_t c : decode_utf8(sentence)) {
    if (c == U'\'' || is_word(c)) {
      word += c;
    } else {
      finish();
    }
  }
  finish();
  return words;
}

}  // namespace eao
