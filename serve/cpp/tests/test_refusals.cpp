// test_refusals CASE SCRATCH: what is wrong is named, and files that were changed are not used.
#include <filesystem>
#include <functional>
#include <vector>

#include "check.hpp"
#include "eao/encoder.hpp"
#include "manifest.hpp"
#include "sha256.hpp"
#include "unicode.hpp"

namespace fs = std::filesystem;
using eao::BundleError;
using eao::DataError;
using eao::Encoder;

namespace {

using Change = std::function<void(const fs::path&)>;

/// Flip the last byte, so that the size stays.
void spoil(const fs::path& file) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(-1, std::ios::end);
  const auto last = static_cast<char>(stream.get() ^ 1);
  stream.seekp(-1, std::ios::end);
  stream.put(last);
  CHECK(stream.good(), file);
}

void replace(const fs::path& file, const std::string& from, const std::string& to) {
  std::ifstream in(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto at = text.find(from);
  CHECK(at != std::string::npos, from);
  std::ofstream(file, std::ios::binary) << text.replace(at, from.size(), to);
}

void check_bundles(const fs::path& bundle, const fs::path& scratch, const std::string& vectors) {
  const auto embed = [&] { Encoder::open(scratch.string()).embed({"a dog"}); };
  const std::vector<std::pair<std::string, Change>> cases = {
      {"it has no manifest.json", [](const fs::path& b) { fs::remove(b / "manifest.json"); }},
      {"is damaged", [](const fs::path& b) { fs::resize_file(b / "manifest.json", 100); }},
      {"has format 1; this version of eao reads 2", [](const fs::path& b) { replace(b / "manifest.json", "\"format\": 2", "\"format\": 1"); }},
      {"is no plain file name", [](const fs::path& b) { replace(b / "manifest.json", "\"text.fp32.onnx\"", "\"../text.fp32.onnx\""); }},
      {"lacks text.fp32.onnx", [](const fs::path& b) { fs::remove(b / "text.fp32.onnx"); }},
      {"text.fp32.onnx has 100 bytes", [](const fs::path& b) { fs::resize_file(b / "text.fp32.onnx", 100); }},
      {"text.fp32.onnx was changed since the export", [](const fs::path& b) { spoil(b / "text.fp32.onnx"); }},
      {"words.json was changed since the export", [](const fs::path& b) { spoil(b / "text" / "words.json"); }},
      {vectors + " was changed since the export", [&](const fs::path& b) { spoil(b / "text" / vectors); }},
      {"lacks text/words.json, which C++ reads sentences with", [](const fs::path& b) { replace(b / "manifest.json", "text/words.json", "text/other.json"); fs::rename(b / "text" / "words.json", b / "text" / "other.json"); }},
  };
  for (const auto& [part, change] : cases) {
    fs::remove_all(scratch);
    fs::copy(bundle, scratch, fs::copy_options::recursive);
    embed();
    change(scratch);
    check_refused<BundleError>(part, embed);
  }
  fs::remove_all(scratch);
  fs::copy(bundle, scratch, fs::copy_options::recursive);
  spoil(scratch / "config.yaml");  // not read here
  embed();
}

void check_inputs(const Encoder& encoder) {
  const eao::Tensor video({1, 3, 10}, std::vector<float>(30, 0.1F));
  const eao::Tensor mask({1, 3}, eao::Tensor::Mask(3, 1));
  const auto embed = [&](eao::Tensors inputs) { return [&encoder, inputs] { encoder.embed("video", inputs); }; };
  encoder.embed("video", {{"video", video}, {"video_mask", mask}});
  check_refused<DataError>("needs video_mask", embed({{"video", video}}));
  check_refused<DataError>("was given 3 inputs", embed({{"video", video}, {"video_mask", mask}, {"audio", video}}));
  check_refused<DataError>("video_mask is float32, but encoder 'video' takes bool",
                           embed({{"video", video}, {"video_mask", eao::Tensor({1, 3}, std::vector<float>(3))}}));
  check_refused<DataError>("video has shape (1, 3, 9), but encoder 'video' takes (batch, video_tokens, 10)",
                           embed({{"video", eao::Tensor({1, 3, 9}, std::vector<float>(27))}, {"video_mask", mask}}));
  check_refused<DataError>("video_mask has 4 video_tokens, but video has 3",
                           embed({{"video", video}, {"video_mask", eao::Tensor({1, 4}, eao::Tensor::Mask(4, 1))}}));
  check_refused<DataError>("video has 0 video_tokens",
                           embed({{"video", eao::Tensor({1, 0, 10}, std::vector<float>())}, {"video_mask", mask}}));
  check_refused<DataError>("do not fill the shape", [] { eao::Tensor({2, 2}, std::vector<float>(3)); });
  check_refused<DataError>("a mask holds 2", [] { eao::Tensor({1}, eao::Tensor::Mask{2}); });
}

/// As Linux names what the processor can do, which the library asks it itself.
bool cpu_has_vnni() {
  std::ifstream file("/proc/cpuinfo");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto has = [&text](const char* flag) { return text.find(flag) != std::string::npos; };
  return !has(" sse2") || has(" avx512_vnni") || has(" avx_vnni") || has(" amx_int8");
}

void check_int8(const fs::path& bundle, const fs::path& scratch) {
  const auto is_refused = [](const std::string& engine, const std::string& precision, bool there, bool here) {
    eao::EngineEntry entry;
    entry.engine = engine;
    entry.precision = precision;
    entry.exact_int8 = there;
    return !eao::unproven(entry, here).empty();
  };
  CHECK(is_refused("openvino", "int8", true, false), "proven with VNNI, run without");
  CHECK(is_refused("openvino", "int8-nncf", true, false), "proven with VNNI, run without");
  CHECK(is_refused("onnxruntime", "int8", false, false), "proven by onnxruntime, run by OpenVINO");
  CHECK(!is_refused("openvino", "int8", false, false), "proven without VNNI");
  CHECK(!is_refused("openvino", "int8", true, true), "run with VNNI");
  CHECK(!is_refused("openvino", "int8-weights", true, false), "only weights are int8");
  CHECK(!is_refused("tensorrt", "int8", true, false), "not OpenVINO's");

  fs::remove_all(scratch);
  fs::copy(bundle, scratch, fs::copy_options::recursive);
  auto manifest = read_json((scratch / "manifest.json").string());
  for (auto& entry : manifest.at("engines")) entry["precision"] = "int8";
  std::ofstream(scratch / "manifest.json") << manifest.dump();
  const auto embed = [&] { Encoder::open(scratch.string()).embed({"a dog"}); };
  if (cpu_has_vnni()) {
    embed();
  } else {
    check_refused<BundleError>("sums overflow on this CPU", embed);
  }
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 3, "usage: test_refusals CASE SCRATCH");
  const std::string folder = arguments[1];
  const fs::path bundle = fs::path(folder) / "bundle", scratch = arguments[2];
  const auto expected = read_json(folder + "/embeddings.json");
  for (const auto& [file, hash] : expected.at("hashes").items()) {
    CHECK(eao::sha256(fs::path(folder) / file) == hash.get<std::string>(), file);
  }
  check_bundles(bundle, scratch, "vectors.bin");
  check_int8(bundle, scratch);
  const auto encoder = Encoder::open(bundle.string());
  check_inputs(encoder);
  for (const char* text : {"\xff", "a\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8"}) {
    check_refused<DataError>("is not valid UTF-8", [&] { encoder.embed({text}); });
  }
  check_refused<DataError>("the sentence '?!' has no words", [&] { encoder.embed({"a dog", "?!"}); });
  check_refused<DataError>("none of the words in 'xyzzy' is in the vocabulary", [&] { encoder.embed({"xyzzy"}); });
  eao::Options options;
  options.engine = "tensorrt", options.precision = "int8";
  check_refused<BundleError>("has no tensorrt int8 engine", [&] { Encoder::open(bundle.string(), options); });
  check_refused<eao::Error>("triton://127.0.0.1:1", [] { Encoder::open("triton://127.0.0.1:1"); });
  return EXIT_SUCCESS;
}
