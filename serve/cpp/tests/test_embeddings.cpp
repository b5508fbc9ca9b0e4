// test_embeddings CASE [SOURCE]: embeddings are those of Python, from the case's bundle or from a server that has it.
#include <cmath>
#include <thread>
#include <vector>

#include "check.hpp"
#include "eao/encoder.hpp"

namespace {

constexpr float kTolerance = 1e-5F;  // float32, of rows of unit length

/// A tensor, its rows so many times after each other.
eao::Tensor read_tensor(const nlohmann::json& json, std::size_t times) {
  auto shape = json.at("shape").get<eao::Shape>();
  shape.at(0) *= times;
  auto values = nlohmann::json::array();
  for (std::size_t i = 0; i < times; ++i) values.insert(values.end(), json.at("values").begin(), json.at("values").end());
  if (json.at("dtype") == "bool") return {shape, values.get<eao::Tensor::Mask>()};
  if (json.at("dtype") == "int64") return {shape, values.get<std::vector<std::int64_t>>()};
  return {shape, values.get<std::vector<float>>()};
}

void compare(const eao::Embeddings& found, const nlohmann::json& expected, const std::string& what,
             std::size_t times = 1) {
  CHECK(found.rows == expected.size() * times, what);
  for (std::size_t i = 0; i < found.rows; ++i) {
    const auto row = expected[i % expected.size()].get<std::vector<float>>();
    CHECK(row.size() == found.dim, what);
    for (std::size_t j = 0; j < found.dim; ++j) {
      const float difference = std::abs(found.row(i)[j] - row[j]);
      CHECK(difference <= kTolerance, what + ", row " + std::to_string(i) + ": " + std::to_string(difference));
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 2 || count == 3, "usage: test_embeddings CASE [SOURCE]");
  const std::string folder = arguments[1];
  const bool is_bundle = count == 2;
  const auto expected = read_json(folder + "/embeddings.json");
  const auto encoder = eao::Encoder::open(is_bundle ? folder + "/bundle" : arguments[2]);
  CHECK(encoder.encoders() == expected.at("encoders").get<std::vector<std::string>>(), encoder.encoders().size());
  CHECK(encoder.dim() == expected.at("dim").get<std::size_t>(), encoder.dim());
  CHECK(encoder.model_hash() == expected.at("model").get<std::string>(), encoder.model_hash());

  const auto sentences = expected.at("sentences").get<std::vector<std::string>>();
  const auto& rows = expected.at("embeddings");
  compare(encoder.embed(sentences), rows, "sentences together");
  for (std::size_t i = 0; i < 3; ++i) {
    compare(encoder.embed({sentences[i]}), nlohmann::json::array({rows[i]}), "alone: " + sentences[i]);
  }
  for (const auto& [name, one] : expected.at("tensors").items()) {
    const auto inputs_of = [&one = one](std::size_t times) {
      eao::Tensors inputs;
      for (const auto& [input, tensor] : one.at("inputs").items()) inputs.emplace(input, read_tensor(tensor, times));
      return inputs;
    };
    eao::Tensors inputs = inputs_of(1);
    compare(encoder.embed(name, inputs), one.at("embeddings"), name);
    // More rows than a server takes at once.
    compare(encoder.embed(name, inputs_of(30)), one.at("embeddings"), name + ", many rows", 30);
    if (is_bundle && name == "text-video") {
      // The same sentences' tensors, made here.
      const auto text = one.at("sentences").get<std::vector<std::string>>();
      for (auto& [input, tensor] : encoder.text_tensors(text)) inputs.insert_or_assign(input, tensor);
      compare(encoder.embed(name, inputs), one.at("embeddings"), name + " of sentences");
    }
  }

  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { compare(encoder.embed(sentences), rows, "from several threads"); });
  }
  for (auto& thread : threads) thread.join();

  check_refused<eao::DataError>("has no words", [&] { encoder.embed({""}); });
  check_refused<eao::DataError>("", [&] { encoder.embed(std::vector<std::string>{}); });
  check_refused<eao::DataError>("no encoder 'smell'", [&] { encoder.embed("smell", {}); });
  compare(encoder.embed(sentences), rows, "after refusals");
  return EXIT_SUCCESS;
}
