// The manifest of a bundle: what each engine is, and what it may be fed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "eao/tensor.hpp"

namespace eao {

/// A file of the bundle.
struct FileEntry {
  std::string name;
  std::uintmax_t size = 0;
  std::string sha256;
};

/// A size that may vary: at least `minimum`, a multiple of `multiple`.
struct Axis {
  std::size_t minimum = 1;
  std::size_t multiple = 1;
};

/// A size of a shape: a number, or the name of an axis.
struct Size {
  std::size_t fixed = 0;
  std::string axis;
};

struct InputEntry {
  std::string name;
  std::string dtype;
  std::vector<Size> shape;
};

struct EngineEntry {
  std::string key;
  std::string encoder;
  std::string engine;
  std::string precision;
  bool deferred = false;
  bool version_compatible = false;
  /// Parity was measured on a processor whose int8 sums are exact; false also where the manifest does not say.
  bool exact_int8 = false;
  std::vector<FileEntry> files;
};

struct Manifest {
  std::filesystem::path folder;
  std::string model_sha256;
  std::size_t embedding_dim = 0;
  std::vector<FileEntry> text;
  std::map<std::string, Axis> axes;
  std::vector<std::pair<std::string, std::vector<InputEntry>>> encoders;
  std::vector<EngineEntry> engines;

  /// The inputs of an encoder, or null.
  const std::vector<InputEntry>* inputs(const std::string& encoder) const;

  /// A file of the text encoder, "text/<name>", or null.
  const FileEntry* text_file(const std::string& name) const;

  /// Throws BundleError if a file is missing or has another size, or, with `content`, another SHA-256.
  void check_file(const FileEntry& file, bool content) const;
};

/// Throws BundleError: no bundle, a damaged manifest, another format, or a file missing or cut short.
Manifest load_manifest(const std::filesystem::path& folder);

/// Why the parity of an engine says nothing about a processor whose int8 sums are exact or not; empty if it does.
std::string unproven(const EngineEntry& entry, bool exact_int8);

/// Throws DataError if an input of the encoder is missing, unknown, or of another dtype or shape.
void check_inputs(const Manifest& manifest, const std::string& encoder, const Tensors& inputs);

}  // namespace eao
