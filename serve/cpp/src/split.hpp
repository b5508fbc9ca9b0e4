// The words of a sentence, as eao.data.text.tokenize finds them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace eao {

/// Runs of letters of any script, digits, underscores and apostrophes, case kept, in UTF-8.
std::vector<std::string> split_words(std::string_view sentence);

}  // namespace eao
