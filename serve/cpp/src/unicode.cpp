#include "unicode.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "eao/error.hpp"

namespace eao {

namespace {

struct Range {
  char32_t first, last;
};

/// `first`, `first + step` ... `last` become that plus `difference`.
struct Run {
  char32_t first, last, step;
  std::int32_t difference;
};

struct Expansion {
  char32_t from;
  const char32_t* to;
};

struct Mark {
  char32_t c;
  unsigned combining_class;
};

#include "unicode_tables.inc"

// Hangul syllables (section 3.12 of the Unicode standard).
constexpr char32_t kSyllables = 0xac00, kSyllablesEnd = 0xd7a4;
constexpr char32_t kLead = 0x1100, kVowel = 0x1161, kTrail = 0x11a7;
constexpr char32_t kLeads = 19, kVowels = 21, kTrails = 28;

/// The entry of a sorted table that may hold `c`: the last that does not begin behind it.
template <typename Entry, std::size_t size, typename First>
const Entry* find(const Entry (&table)[size], char32_t c, First first) {
  const auto* found =
      std::upper_bound(std::begin(table), std::end(table), c, [&](char32_t x, const Entry& e) { return x < first(e); });
  return found == std::begin(table) ? nullptr : found - 1;
}

template <std::size_t size>
bool contains(const Range (&table)[size], char32_t c) {
  const auto* range = find(table, c, [](const Range& r) { return r.first; });
  return range != nullptr && c <= range->last;
}

unsigned combining_class(char32_t c) {
  const auto* mark = find(kMarks, c, [](const Mark& m) { return m.c; });
  return mark != nullptr && mark->c == c ? mark->combining_class : 0;
}

/// Append a mark at its place: behind those of a class that is not greater.
void append(std::u32string& text, char32_t c) {
  const unsigned own = combining_class(c);
  std::size_t at = text.size();
  while (own != 0 && at > 0 && combining_class(text[at - 1]) > own) --at;
  text.insert(at, 1, c);
}

/// What tables replace `c` by; empty if they say nothing of it.
template <std::size_t runs, std::size_t expansions>
std::u32string_view replacement(const Run (&replaced)[runs], const Expansion (&expanded)[expansions], char32_t c,
                                char32_t& single) {
  const auto* expansion = find(expanded, c, [](const Expansion& e) { return e.from; });
  if (expansion != nullptr && expansion->from == c) return expansion->to;
  const auto* run = find(replaced, c, [](const Run& r) { return r.first; });
  if (run == nullptr || c > run->last || (c - run->first) % run->step != 0) return {};
  single = static_cast<char32_t>(static_cast<std::int32_t>(c) + run->difference);
  return {&single, 1};
}

void append_bert(std::u32string& text, char32_t c) {
  if (c >= kSyllables && c < kSyllablesEnd) {
    const char32_t index = c - kSyllables;
    text += kLead + index / (kVowels * kTrails);
    text += kVowel + index % (kVowels * kTrails) / kTrails;
    if (index % kTrails != 0) text += kTrail + index % kTrails;
    return;
  }
  char32_t single = 0;
  const auto found = replacement(kBertReplaced, kBertExpanded, c, single);
  for (const char32_t to : found) append(text, to);
  if (found.empty()) append(text, c);
}

/// Put `c` and the end of the text together, if they are parts of a syllable.
bool compose_hangul(std::u32string& text, char32_t c) {
  if (text.empty()) return false;
  char32_t& last = text.back();
  if (last >= kLead && last < kLead + kLeads && c >= kVowel && c < kVowel + kVowels) {
    last = kSyllables + ((last - kLead) * kVowels + (c - kVowel)) * kTrails;
    return true;
  }
  const bool open = last >= kSyllables && last < kSyllablesEnd && (last - kSyllables) % kTrails == 0;
  if (!open || c <= kTrail || c >= kTrail + kTrails) return false;
  last += c - kTrail;
  return true;
}

[[noreturn]] void refuse_utf8(std::size_t at) {
  throw DataError("the sentence is not valid UTF-8 at byte " + std::to_string(at), "convert it to UTF-8");
}

}  // namespace

std::u32string decode_utf8(std::string_view text) {
  std::u32string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (length == 0 || at + length > text.size()) refuse_utf8(at);
    char32_t c = length == 1 ? lead : lead & (0x7fu >> length);
    for (std::size_t i = 1; i < length; ++i) {
      const auto next = static_cast<unsigned char>(text[at + i]);
      if ((next & 0xc0) != 0x80) refuse_utf8(at);
      c = (c << 6) | (next & 0x3f);
    }
    const bool overlong = (length == 3 && c < 0x800) || (length == 4 && c < 0x10000);
    if (overlong || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) refuse_utf8(at);
    result += c;
    at += length;
  }
  return result;
}

std::string encode_utf8(std::u32string_view text) {
  std::string result;
  result.reserve(text.size());
  for (const char32_t c : text) {
    if (c < 0x80) {
      result += static_cast<char>(c);
      continue;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    result += static_cast<char>(((0xff00u >> (more + 1)) & 0xff) | (c >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) result += static_cast<char>(0x80 | ((c >> (6 * i)) & 0x3f));
  }
  return result;
}

bool is_word(char32_t c) { return contains(kWord, c); }

bool is_punctuation(char32_t c) { return contains(kPunctuation, c); }

bool is_letter(char32_t c) { return contains(kLetter, c); }

bool is_number(char32_t c) { return contains(kNumber, c); }

std::u32string normalize_bert(std::u32string_view text) {
  std::u32string result;
  result.reserve(text.size());
  for (const char32_t c : text) {
    if (contains(kRemoved, c)) continue;
    if (contains(kBlank, c)) {
      result += U' ';
    } else if (contains(kIdeograph, c)) {
      result += U' ';
      append_bert(result, c);
      result += U' ';
    } else {
      append_bert(result, c);
    }
  }
  return result;
}

std::u32string normalize_clip(std::u32string_view word) {
  std::u32string result;
  result.reserve(word.size());
  for (const char32_t c : word) {
    if (compose_hangul(result, c)) continue;
    char32_t single = 0;
    const auto found = replacement(kClipReplaced, kClipExpanded, c, single);
    if (found.empty()) {
      result += c;
    } else {
      result += found;
    }
  }
  return result;
}

}  // namespace eao
