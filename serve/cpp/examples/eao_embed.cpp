// eao-embed --bundle B --text "a dog barks": embeddings of sentences as JSON.
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "eao/encoder.hpp"

namespace {

constexpr const char* kUsage =
    "usage: eao-embed --bundle FOLDER|triton://HOST:PORT [--engine NAME] [--precision NAME] [--threads N] --text SENTENCE "
    "...";

struct Arguments {
  std::string source;
  std::vector<std::string> sentences;
  eao::Options options;
};

unsigned read_threads(const std::string& text) {
  if (text.empty() || text.size() > 4 || text.find_first_not_of("0123456789") != std::string::npos) {
    throw eao::Error("--threads " + text + " is no number of threads", kUsage);
  }
  return static_cast<unsigned>(std::stoul(text));
}

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); i += 2) {
    const std::string& name = words[i];
    if (i + 1 == words.size()) throw eao::Error(name + " needs a value", kUsage);
    const std::string& value = words[i + 1];
    if (name == "--bundle") {
      arguments.source = value;
    } else if (name == "--text") {
      arguments.sentences.push_back(value);
    } else if (name == "--engine") {
      arguments.options.engine = value;
    } else if (name == "--precision") {
      arguments.options.precision = value;
    } else if (name == "--threads") {
      arguments.options.threads = read_threads(value);
    } else {
      throw eao::Error("there is no option " + name, kUsage);
    }
  }
  if (arguments.source.empty() || arguments.sentences.empty()) throw eao::Error("nothing to embed", kUsage);
  return arguments;
}

}  // namespace

int main(int count, char** words) {
  try {
    const Arguments arguments = parse({words + 1, words + count});
    const auto encoder = eao::Encoder::open(arguments.source, arguments.options);
    const eao::Embeddings found = encoder.embed(arguments.sentences);
    auto rows = nlohmann::json::array();
    for (std::size_t i = 0; i < found.rows; ++i) {
      rows.push_back(std::vector<float>(found.row(i), found.row(i) + found.dim));
    }
    const nlohmann::ordered_json result = {{"encoder", "text"}, {"model", encoder.model_hash()}, {"embeddings", rows}};
    std::cout << result.dump() << std::endl;
    return EXIT_SUCCESS;
  } catch (const eao::Error& error) {  // anything else is a bug, and ends the program with its message
    std::cerr << "eao-embed: " << error.what() << std::endl;
    return 2;
  }
}
