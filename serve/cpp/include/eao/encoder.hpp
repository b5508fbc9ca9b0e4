// Embeds sentences, videos and sounds with the engines of a bundle, or with a Triton Inference Server.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "eao/error.hpp"
#include "eao/tensor.hpp"

namespace eao {

class Source;

/// Which engine is used, and how.
struct Options {
  /// "openvino", "onnxruntime" or "tensorrt"; empty: the first of the bundle's that this build can run.
  std::string engine;
  /// "fp32", "fp16", "int8" ...; empty: any.
  std::string precision;
  /// Of one run; 0: as many as the machine has cores.
  unsigned threads = 0;
  /// Compare the SHA-256 of every file with the manifest before it is used.
  bool verify = true;
  /// Of one request to a server.
  double timeout_seconds = 30;
};

/// Encoders of one model. Engines open on first use. Safe to call from several threads.
///
///     const auto encoder = eao::Encoder::open("runs/demo/bundle");
///     const auto rows = encoder.embed({"a dog barks"});
class Encoder {
 public:
  /// Open a bundle's folder, or a server: "triton://host:port", where port is that of gRPC.
  ///
  /// Throws BundleError if the folder is no bundle, is damaged, or has no engine that this build runs; ServerError if the
  /// server cannot be reached.
  static Encoder open(const std::string& source, Options options = {});

  Encoder(Encoder&&) noexcept;
  Encoder& operator=(Encoder&&) noexcept;
  ~Encoder();

  /// Names such as "text" and "video-audio".
  std::vector<std::string> encoders() const;

  /// Width of an embedding.
  std::size_t dim() const;

  /// SHA-256 of the weights: equal hashes embed into the same space.
  std::string model_hash() const;

  /// Embed sentences in UTF-8, in batches. Throws DataError if one of them has no known word.
  Embeddings embed(const std::vector<std::string>& sentences) const;

  /// Embed prepared tensors, all inputs of the encoder. Throws DataError if one is missing, unknown, or does not fit.
  Embeddings embed(const std::string& encoder, const Tensors& inputs) const;

  /// The inputs "text" and "text_mask" of sentences, for encoders that read more than text. Bundles only.
  Tensors text_tensors(const std::vector<std::string>& sentences) const;

 private:
  explicit Encoder(std::unique_ptr<Source> source);

  std::unique_ptr<Source> source_;
};

/// The back ends in this build, of "openvino", "tensorrt" and "triton".
std::vector<std::string> backends();

}  // namespace eao
