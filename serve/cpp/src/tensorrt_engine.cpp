// Engines of TensorRT, on the first CUDA device. Unverified on GPU: written against NVIDIA's documentation of 10.x and 11.x.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "eao/error.hpp"
#include "engine.hpp"

namespace eao {

namespace {

void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) {
    throw BundleError(what + " failed: " + cudaGetErrorString(status), "see nvidia-smi for the device's state");
  }
}

/// Keeps what TensorRT complains of last.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = message;
  }

  std::string last() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_.empty() ? "it gives no reason" : last_;
  }

 private:
  mutable std::mutex mutex_;
  std::string last_;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a CUDA stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const noexcept { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Memory of the device that grows.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* reserve(std::size_t bytes) {
    if (bytes > size_) {
      cudaFree(data_);
      data_ = nullptr;
      size_ = 0;
      check(cudaMalloc(&data_, bytes), "reserving memory of the device");
      size_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

nvinfer1::Dims to_dims(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  // The type of a size differs by version.
  for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = static_cast<std::decay_t<decltype(dims.d[0])>>(shape[i]);
  return dims;
}

bool within(const Shape& shape, const nvinfer1::Dims& least, const nvinfer1::Dims& most) {
  if (static_cast<std::size_t>(least.nbDims) != shape.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const auto size = static_cast<std::int64_t>(shape[i]);
    if (size < least.d[i] || size > most.d[i]) return false;
  }
  return true;
}

class TensorRtEngine : public Engine {
 public:
  TensorRtEngine(const std::filesystem::path& path, bool version_compatible) : path_(path.string()) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_ == nullptr) fail("TensorRT does not start");
    runtime_->setEngineHostCodeAllowed(version_compatible);
    engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
    if (engine_ == nullptr) {
      throw BundleError("TensorRT cannot load " + path_ + ": " + logger_.last(),
                        "it was built for another GPU or version: build it again on this machine, with --engine trt");
    }
    context_.reset(engine_->createExecutionContext());
    if (context_ == nullptr) fail("it gets no memory of the device");
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT) output_ = name;
    }
    if (engine_->getTensorDataType(output_.c_str()) != nvinfer1::DataType::kFLOAT) fail("its output is not float32");
  }

  /// Calls take turns: a context runs one at a time.
  Output run(const Tensors& inputs) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    choose_profile(inputs);
    for (const auto& [name, tensor] : inputs) {
      void* memory = buffers_[name].reserve(tensor.bytes());
      check(cudaMemcpyAsync(memory, tensor.data(), tensor.bytes(), cudaMemcpyHostToDevice, stream_.get()), "copying in");
      if (!context_->setInputShape(name.c_str(), to_dims(tensor.shape())) ||
          !context_->setTensorAddress(name.c_str(), memory)) {
        fail("it refuses " + name + " of shape " + describe(tensor.shape()));
      }
    }
    Output output;
    const nvinfer1::Dims dims = context_->getTensorShape(output_.c_str());
    for (std::int32_t i = 0; i < dims.nbDims; ++i) {
      if (dims.d[i] < 0) fail("it lacks an input");
      output.shape.push_back(static_cast<std::size_t>(dims.d[i]));
    }
    output.values.resize(element_count(output.shape));
    const std::size_t bytes = output.values.size() * sizeof(float);
    void* memory = buffers_[output_].reserve(bytes);
    if (!context_->setTensorAddress(output_.c_str(), memory) || !context_->enqueueV3(stream_.get())) fail("it cannot run");
    check(cudaMemcpyAsync(output.values.data(), memory, bytes, cudaMemcpyDeviceToHost, stream_.get()), "copying out");
    check(cudaStreamSynchronize(stream_.get()), "running " + path_);
    return output;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw BundleError(path_ + ": " + what + ": " + logger_.last(), "build the engine again");
  }

  /// The first profile that takes all sizes.
  void choose_profile(const Tensors& inputs) {
    using nvinfer1::OptProfileSelector;
    for (std::int32_t profile = 0; profile < engine_->getNbOptimizationProfiles(); ++profile) {
      const bool fits = std::all_of(inputs.begin(), inputs.end(), [&](const auto& input) {
        const char* name = input.first.c_str();
        return within(input.second.shape(), engine_->getProfileShape(name, profile, OptProfileSelector::kMIN),
                      engine_->getProfileShape(name, profile, OptProfileSelector::kMAX));
      });
      if (!fits) continue;
      if (profile == context_->getOptimizationProfile()) return;
      if (!context_->setOptimizationProfileAsync(profile, stream_.get())) fail("profile cannot be used");
      check(cudaStreamSynchronize(stream_.get()), "changing the profile");
      return;
    }
    std::string sizes;
    for (const auto& [name, tensor] : inputs) sizes += " " + name + " " + describe(tensor.shape());
    throw DataError("no profile of " + path_ + " takes" + sizes, "embed fewer rows at once, or build it for larger sizes");
  }

  // In the order in which they are made: each needs those above it.
  const std::string path_;
  Logger logger_;
  Stream stream_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::string output_;
  std::map<std::string, Buffer> buffers_;
  std::mutex mutex_;
};

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const std::filesystem::path& path, bool version_compatible) {
  return std::make_unique<TensorRtEngine>(path, version_compatible);
}

}  // namespace eao
