#include "word_vectors.hpp"

#include <charconv>
#include <cstring>
#include <string>

#include "eao/error.hpp"

namespace eao {

namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw BundleError("cannot read word vectors from " + path.string() + ": " + why,
                    "it must be in word2vec's binary format");
}

/// The number at the beginning of `text`, which is moved behind it and one separator.
std::size_t take_number(std::string_view& text, const std::filesystem::path& path) {
  std::size_t number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failed != std::errc() || end == text.data() + text.size()) {
    refuse(path, "it does not begin with the number of words and their width");
  }
  text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
  return number;
}

}  // namespace

WordVectors::WordVectors(const std::filesystem::path& path) : file_(path) {
  // "<words> <dim>\n", then of each word: its UTF-8 bytes, a blank, dim floats and often a newline.
  std::string_view rest = file_.bytes();
  const std::size_t count = take_number(rest, path);
  dim_ = take_number(rest, path);
  if (dim_ == 0 || dim_ > rest.size() / sizeof(float)) refuse(path, "its width is " + std::to_string(dim_));
  const std::size_t width = dim_ * sizeof(float);
  if (count > rest.size() / width) refuse(path, "it ends early");
  places_.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    while (!rest.empty() && rest.front() == '\n') rest.remove_prefix(1);
    const std::size_t blank = rest.find(' ');
    if (blank == std::string_view::npos || rest.size() - blank - 1 < width) refuse(path, "it ends early");
    places_.try_emplace(rest.substr(0, blank), rest.data() + blank + 1);  // of a word that comes twice, the first counts
    rest.remove_prefix(blank + 1 + width);
  }
}

bool WordVectors::copy(std::string_view word, float* target) const {
  const auto found = places_.find(word);
  if (found == places_.end()) return false;
  std::memcpy(target, found->second, dim_ * sizeof(float));
  return true;
}

}  // namespace eao
