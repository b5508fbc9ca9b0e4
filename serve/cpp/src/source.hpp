// What Encoder stands on: a bundle or a server.
#pragma once

#include <string>
#include <vector>

#include "eao/encoder.hpp"

namespace eao {

/// See Encoder for the meaning of each.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::vector<std::string> encoders() const = 0;
  virtual std::size_t dim() const = 0;
  virtual std::string model_hash() const = 0;
  virtual Embeddings embed_sentences(const std::vector<std::string>& sentences) = 0;
  virtual Embeddings embed_tensors(const std::string& encoder, const Tensors& inputs) = 0;
  virtual Tensors text_tensors(const std::vector<std::string>& sentences) = 0;
};

std::unique_ptr<Source> open_bundle(const std::string& folder, const Options& options);

/// Throws Error where the build has no gRPC.
std::unique_ptr<Source> connect_triton(const std::string& address, const Options& options);

}  // namespace eao
