// An engine: an encoder, or the network of the text encoder, compiled for a runtime.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "eao/tensor.hpp"

namespace eao {

/// What came out of an engine.
struct Output {
  Shape shape;
  std::vector<float> values;
};

/// Safe to call from several threads.
class Engine {
 public:
  virtual ~Engine() = default;

  /// The engine's only output, for tensors by the names of its inputs, whose shapes were checked.
  virtual Output run(const Tensors& inputs) = 0;
};

/// Whether this build runs engines of that name ("onnxruntime" graphs run in OpenVINO).
bool has_engine(const std::string& name);

/// Open the file of an engine. Throws BundleError if the runtime refuses it, or is not in this build.
///
/// A version compatible engine of TensorRT carries code of its own for this process to run.
std::unique_ptr<Engine> open_engine(const std::string& name, const std::filesystem::path& path, unsigned threads,
                                    bool version_compatible = false);

// Of the back ends, where they are built.
std::unique_ptr<Engine> open_openvino(const std::filesystem::path& path, unsigned threads);
std::unique_ptr<Engine> open_tensorrt(const std::filesystem::path& path, bool version_compatible);

}  // namespace eao
