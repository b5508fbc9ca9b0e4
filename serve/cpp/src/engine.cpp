#include "engine.hpp"

#include "source.hpp"

namespace eao {

namespace {

#ifdef EAO_WITH_OPENVINO
constexpr bool kOpenVino = true;
#else
constexpr bool kOpenVino = false;
#endif
#ifdef EAO_WITH_TENSORRT
constexpr bool kTensorRt = true;
#else
constexpr bool kTensorRt = false;
#endif
#ifdef EAO_WITH_TRITON
constexpr bool kTriton = true;
#else
constexpr bool kTriton = false;
#endif

bool is_graph(const std::string& name) { return name == "openvino" || name == "onnxruntime"; }

}  // namespace

std::vector<std::string> backends() {
  std::vector<std::string> found;
  if (kOpenVino) found.emplace_back("openvino");
  if (kTensorRt) found.emplace_back("tensorrt");
  if (kTriton) found.emplace_back("triton");
  return found;
}

bool has_engine(const std::string& name) {
  return (is_graph(name) && kOpenVino) || (name == "tensorrt" && kTensorRt);
}

std::unique_ptr<Engine> open_engine(const std::string& name, const std::filesystem::path& path,
                                    [[maybe_unused]] unsigned threads, [[maybe_unused]] bool version_compatible) {
#ifdef EAO_WITH_OPENVINO
  if (is_graph(name)) return open_openvino(path, threads);
#endif
#ifdef EAO_WITH_TENSORRT
  if (name == "tensorrt") return open_tensorrt(path, version_compatible);
#endif
  const std::string option = is_graph(name) ? "OPENVINO" : name == "tensorrt" ? "TENSORRT" : "";
  throw BundleError("this build of eao cannot run " + path.filename().string() + ", an engine for " + name,
                    option.empty() ? "C++ runs engines for openvino, onnxruntime and tensorrt"
                                   : "configure it with -DEAO_WITH_" + option + "=ON");
}

#ifndef EAO_WITH_TRITON
std::unique_ptr<Source> connect_triton(const std::string& address, const Options&) {
  throw Error("this build of eao cannot reach " + address, "configure it with -DEAO_WITH_TRITON=ON");
}
#endif

}  // namespace eao
