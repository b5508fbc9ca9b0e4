// Characters as this project's Python sees them. The tables are made from it: see tools/make_unicode_tables.py.
#pragma once

#include <string>
#include <string_view>

namespace eao {

/// Code points of a UTF-8 string. Throws DataError if it is not valid UTF-8.
std::u32string decode_utf8(std::string_view text);
std::string encode_utf8(std::u32string_view text);

/// Whether `\w` of Python's `re` matches: letters and digits of any script, and the underscore.
bool is_word(char32_t c);

/// Text as BERT's uncased tokenizers normalise it: no control characters, every white space a blank, blanks around
/// ideographs, no accents, lower case.
std::u32string normalize_bert(std::u32string_view text);

/// Whether BERT's tokenizers make a word of its own of it.
bool is_punctuation(char32_t c);

/// A word as CLIP's tokenizers normalise it: composed, in lower case.
std::u32string normalize_clip(std::u32string_view word);

/// Whether CLIP's tokenizers take it for a letter, or for a digit.
bool is_letter(char32_t c);
bool is_number(char32_t c);

}  // namespace eao
