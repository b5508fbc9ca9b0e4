// Graphs in OpenVINO, on the CPU.
#include <mutex>
#include <openvino/openvino.hpp>
#include <utility>
#include <vector>

#include "eao/error.hpp"
#include "engine.hpp"

namespace eao {

namespace {

ov::element::Type element_type(const std::string& dtype) {
  return dtype == "float32" ? ov::element::f32 : dtype == "int64" ? ov::element::i64 : ov::element::boolean;
}

class OpenVinoEngine : public Engine {
 public:
  OpenVinoEngine(const std::filesystem::path& path, unsigned threads) : path_(path) {
    ov::AnyMap settings = {
        // On processors with narrower units it would round to bfloat16 on its own.
        ov::hint::inference_precision(ov::element::f32),
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
    };
    if (threads != 0) settings.emplace(ov::inference_num_threads(static_cast<std::int32_t>(threads)));
    try {
      model_ = core_.compile_model(path.string(), "CPU", settings);
    } catch (const ov::Exception& error) {
      throw BundleError("OpenVINO cannot load " + path.string() + ": " + error.what(), "export the bundle again");
    }
    if (model_.outputs().size() != 1 || model_.output().get_element_type() != ov::element::f32) {
      throw BundleError(path.string() + " does not give one output in float32", "export the bundle again");
    }
  }

  Output run(const Tensors& inputs) override {
    ov::InferRequest request = take();
    for (const auto& [name, tensor] : inputs) {
      // OpenVINO reads it in place, and asks for a pointer that is not const.
      request.set_tensor(name, ov::Tensor(element_type(tensor.dtype()), ov::Shape(tensor.shape()),
                                          const_cast<void*>(tensor.data())));
    }
    try {
      request.infer();
    } catch (const ov::Exception& error) {
      throw BundleError("OpenVINO cannot run " + path_.string() + ": " + error.what());
    }
    const ov::Tensor found = request.get_output_tensor();
    const ov::Shape shape = found.get_shape();
    const auto* values = found.data<const float>();
    Output output{Shape(shape.begin(), shape.end()), std::vector<float>(values, values + found.get_size())};
    give_back(std::move(request));
    return output;
  }

 private:
  /// A request that nobody uses: each call needs one of its own.
  ov::InferRequest take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        ov::InferRequest request = std::move(idle_.back());
        idle_.pop_back();
        return request;
      }
    }
    return model_.create_infer_request();
  }

  void give_back(ov::InferRequest request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(request));
  }

  std::filesystem::path path_;
  ov::Core core_;
  ov::CompiledModel model_;
  std::mutex mutex_;
  std::vector<ov::InferRequest> idle_;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const std::filesystem::path& path, unsigned threads) {
  return std::make_unique<OpenVinoEngine>(path, threads);
}

}  // namespace eao
