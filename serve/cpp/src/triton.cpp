// A Triton Inference Server as a source of embeddings, over gRPC.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>

#include "inference.grpc.pb.h"
#include "source.hpp"

namespace eao {

namespace {

constexpr const char* kScheme = "triton://";
constexpr const char* kEnsemble = "embed-";  // from raw inputs to the embedding of an encoder
constexpr const char* kOutput = "embedding";
constexpr const char* kEncoders[] = {"text",       "video",       "audio",           "text-video",
                                     "text-audio", "video-audio", "text-video-audio"};

const char* triton_type(const std::string& dtype) {
  return dtype == "float32" ? "FP32" : dtype == "int64" ? "INT64" : "BOOL";
}

/// Strings as Triton packs them: the length in four bytes, the least first, then the bytes.
std::string pack(const std::vector<std::string>& strings) {
  std::string packed;
  for (const auto& text : strings) {
    for (int shift = 0; shift < 32; shift += 8) packed += static_cast<char>(text.size() >> shift & 0xff);
    packed += text;
  }
  return packed;
}

class Triton : public Source {
 public:
  Triton(const std::string& address, const Options& options) : address_(address), timeout_(options.timeout_seconds) {
    if (!options.engine.empty() || !options.precision.empty()) {
      throw DataError("the engine cannot be chosen from here: it is the server's", "leave engine and precision out");
    }
    grpc::ChannelArguments arguments;
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetMaxReceiveMessageSize(-1);
    const std::string target = address.substr(std::strlen(kScheme));
    stub_ = inference::GRPCInferenceService::NewStub(
        grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
    read_models();
  }

  std::vector<std::string> encoders() const override {
    std::vector<std::string> names;
    for (const char* name : kEncoders) {
      if (is_encoder(name)) names.emplace_back(name);
    }
    return names;
  }

  std::size_t dim() const override { return dim_; }

  std::string model_hash() const override { return hash_; }

  Embeddings embed_sentences(const std::vector<std::string>& sentences) override {
    const auto& model = find(std::string(kEnsemble) + "text");
    Embeddings all{0, dim_, {}};
    const std::size_t most = most_rows(model, sentences.size());
    for (std::size_t first = 0; first < sentences.size(); first += most) {
      const std::size_t rows = std::min(most, sentences.size() - first);
      const auto begin = sentences.begin() + static_cast<std::ptrdiff_t>(first);
      auto request = new_request(model);
      add_input(request, model, "sentence", "BYTES", {rows, 1},
                pack({begin, begin + static_cast<std::ptrdiff_t>(rows)}));
      infer(request, rows, all);
    }
    return all;
  }

  Embeddings embed_tensors(const std::string& encoder, const Tensors& inputs) override {
    if (!is_encoder(encoder)) {
      throw DataError(address_ + " has no encoder '" + encoder + "'", "it has " + list(encoders()));
    }
    const auto& model = find(encoder);
    const std::size_t rows = count_rows(inputs);
    Embeddings all{0, dim_, {}};
    const std::size_t most = most_rows(model, rows);
    for (std::size_t first = 0; first < rows; first += most) {
      const std::size_t count = std::min(most, rows - first);
      auto request = new_request(model);
      for (const auto& [name, tensor] : inputs) {
        Shape shape = tensor.shape();
        const std::size_t stride = tensor.bytes() / rows;
        shape[0] = count;
        const char* data = static_cast<const char*>(tensor.data()) + first * stride;
        add_input(request, model, name, triton_type(tensor.dtype()), shape, std::string(data, count * stride));
      }
      infer(request, count, all);
    }
    return all;
  }

  Tensors text_tensors(const std::vector<std::string>&) override {
    throw DataError(address_ + " keeps its text encoder to itself", "open the bundle's folder for text_tensors()");
  }

 private:
  using Model = inference::ModelConfig;

  static std::string list(const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
  }

  static std::size_t most_rows(const Model& model, std::size_t rows) {
    return model.max_batch_size() > 0 ? static_cast<std::size_t>(model.max_batch_size()) : std::max<std::size_t>(rows, 1);
  }

  static std::size_t count_rows(const Tensors& inputs) {
    if (inputs.empty()) throw DataError("no inputs were given");
    const auto& [first, tensor] = *inputs.begin();
    if (tensor.shape().empty() || tensor.shape()[0] == 0) throw DataError(first + " has no rows");
    for (const auto& [name, other] : inputs) {
      if (other.shape().empty() || other.shape()[0] != tensor.shape()[0]) {
        throw DataError(name + " has shape " + describe(other.shape()) + ", but " + first + " has " +
                        std::to_string(tensor.shape()[0]) + " rows");
      }
    }
    return tensor.shape()[0];
  }

  bool is_encoder(const std::string& name) const {
    const auto found = models_.find(name);
    return found != models_.end() && found->second.parameters().count("model_sha256") != 0;
  }

  const Model& find(const std::string& name) const {
    const auto found = models_.find(name);
    if (found == models_.end()) {
      throw ServerError(address_ + " has no model '" + name + "' that is ready",
                        "write the repository with eao serve triton, and read the server's log for what did not load");
    }
    return found->second;
  }

  /// Ask which models are ready, and what they take.
  void read_models() {
    inference::RepositoryIndexRequest question;
    question.set_ready(true);
    inference::RepositoryIndexResponse index;
    call(&Stub::RepositoryIndex, question, index);
    for (const auto& entry : index.models()) {
      inference::ModelConfigRequest asked;
      asked.set_name(entry.name());
      inference::ModelConfigResponse answer;
      call(&Stub::ModelConfig, asked, answer);
      models_[entry.name()] = answer.config();
    }
    for (const auto& name : encoders()) {
      const Model& model = models_.at(name);
      const std::string& hash = model.parameters().at("model_sha256").string_value();
      if (!hash_.empty() && hash != hash_) {
        throw ServerError("the encoders of " + address_ + " come from different weights",
                          "serve one bundle from a repository");
      }
      hash_ = hash;
      for (const auto& output : model.output()) {
        if (output.name() == kOutput && output.dims_size() > 0) {
          dim_ = static_cast<std::size_t>(output.dims(output.dims_size() - 1));
        }
      }
    }
    if (dim_ == 0) {
      throw ServerError(address_ + " has no encoders that are ready",
                        "write them a repository: eao serve triton --bundle BUNDLE --out REPOSITORY");
    }
  }

  static inference::ModelInferRequest new_request(const Model& model) {
    inference::ModelInferRequest request;
    request.set_model_name(model.name());
    request.add_outputs()->set_name(kOutput);
    return request;
  }

  static void add_input(inference::ModelInferRequest& request, const Model& model, const std::string& name,
                        const std::string& type, Shape shape, std::string bytes) {
    for (const auto& input : model.input()) {
      // One number per row is an axis of its own there.
      const bool batched = model.max_batch_size() > 0;
      if (batched && input.name() == name && input.dims_size() == 1 && shape.size() == 1) shape.push_back(1);
    }
    auto* input = request.add_inputs();
    input->set_name(name);
    input->set_datatype(type);
    for (const auto size : shape) input->add_shape(static_cast<std::int64_t>(size));
    request.add_raw_input_contents(std::move(bytes));
  }

  /// Run a request and append its rows.
  void infer(const inference::ModelInferRequest& request, std::size_t rows, Embeddings& all) {
    inference::ModelInferResponse response;
    call(&Stub::ModelInfer, request, response);
    const std::size_t bytes = rows * dim_ * sizeof(float);
    if (response.raw_output_contents_size() != 1 || response.raw_output_contents(0).size() != bytes) {
      throw ServerError(address_ + " gave no embeddings of width " + std::to_string(dim_) + " for " +
                        request.model_name());
    }
    all.rows += rows;
    all.values.resize(all.rows * dim_);
    std::memcpy(all.values.data() + (all.rows - rows) * dim_, response.raw_output_contents(0).data(), bytes);
  }

  using Stub = inference::GRPCInferenceService::Stub;

  template <typename Request, typename Response>
  void call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*), const Request& request,
            Response& response) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(static_cast<std::int64_t>(timeout_ * 1000)));
    const grpc::Status status = (*stub_.*method)(&context, request, &response);
    if (status.ok()) return;
    const std::string message = address_ + ": " + status.error_message();
    switch (status.error_code()) {
      case grpc::StatusCode::INVALID_ARGUMENT:
        throw DataError(message);
      case grpc::StatusCode::DEADLINE_EXCEEDED:
        throw ServerError(address_ + " gave no answer within " + std::to_string(timeout_) + " s",
                          "it may be overloaded, or is not there: check the address, or allow more time");
      case grpc::StatusCode::UNAVAILABLE:
        throw ServerError(message, "is a Triton Inference Server running there? gRPC has a port of its own, 8001");
      default:
        throw ServerError(message, "see the server's log");
    }
  }

  const std::string address_;
  const double timeout_;
  std::unique_ptr<Stub> stub_;
  std::map<std::string, Model> models_;
  std::string hash_;
  std::size_t dim_ = 0;
};

}  // namespace

std::unique_ptr<Source> connect_triton(const std::string& address, const Options& options) {
  return std::make_unique<Triton>(address, options);
}

}  // namespace eao
