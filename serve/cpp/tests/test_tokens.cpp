// test_tokens CASE: words and token ids of odd strings are those of Python.
#include <vector>

#include "check.hpp"
#include "split.hpp"
#include "tokenizer.hpp"

int main(int count, char** arguments) {
  CHECK(count == 2, "usage: test_tokens CASE");
  const std::string folder = arguments[1];
  const auto expected = read_json(folder + "/tokens.json");
  const auto strings = expected.at("strings").get<std::vector<std::string>>();
  const auto words = expected.at("words").get<std::vector<std::vector<std::string>>>();
  CHECK(strings.size() >= 1000, strings.size());
  for (std::size_t i = 0; i < strings.size(); ++i) {
    CHECK(eao::split_words(strings[i]) == words[i], "string " + std::to_string(i) + ": " + strings[i].substr(0, 200));
  }
  if (!expected.contains("ids")) return EXIT_SUCCESS;  // word vectors have no ids
  const auto tokenizer = eao::load_tokenizer(folder + "/bundle/text/words.tokenizer.json");
  const auto ids = expected.at("ids").get<std::vector<std::vector<std::int64_t>>>();
  for (std::size_t i = 0; i < strings.size(); ++i) {
    const auto found = tokenizer->encode(strings[i]);
    CHECK(found == ids[i], "string " + std::to_string(i) + ": " + strings[i].substr(0, 200) + " gave " +
                               nlohmann::json(found).dump() + " instead of " + nlohmann::json(ids[i]).dump());
  }
  return EXIT_SUCCESS;
}
