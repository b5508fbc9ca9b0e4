#include "tokenizer.hpp"

#include <fstream>
#include <nlohmann/json.hpp>

#include "bpe.hpp"
#include "eao/error.hpp"
#include "word_piece.hpp"

namespace eao {

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw BundleError("cannot read " + path.string(), "export the bundle again");
  try {
    const auto json = nlohmann::json::parse(file);
    const auto& model = json.at("model");
    const auto type = model.at("type").get<std::string>();
    if (type == "WordPiece") return std::make_unique<WordPiece>(json);
    if (type == "BPE" && model.value("end_of_word_suffix", "") == "</w>") return std::make_unique<ClipBpe>(json);
    throw BundleError(path.string() + " holds a tokenizer of type " + type + ", which C++ does not have",
                      "use a text encoder with BERT's or CLIP's tokenizer, or embed through a Triton server");
  } catch (const nlohmann::json::exception& error) {
    throw BundleError(path.string() + " is damaged: " + error.what(), "export the bundle again");
  }
}

}  // namespace eao
