#include "manifest.hpp"

#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "eao/error.hpp"
#include "sha256.hpp"

namespace eao {

namespace {

using Json = nlohmann::ordered_json;  // engines stand in order of preference

constexpr int kFormat = 2;
constexpr const char* kTextFolder = "text/";

/// Names come from a file that may have been tampered with, and must not lead out of the bundle.
std::string plain_name(const std::string& name) {
  const bool in_text = name.rfind(kTextFolder, 0) == 0;
  const std::string plain = in_text ? name.substr(5) : name;
  if (plain.empty() || plain == "." || plain == ".." || plain.find_first_of("/\\") != std::string::npos) {
    throw BundleError("'" + name + "' is no plain file name", "export the bundle again");
  }
  return name;
}

FileEntry read_file_entry(const Json& json) {
  return {plain_name(json.at("file").get<std::string>()), json.at("size").get<std::uintmax_t>(),
          json.at("sha256").get<std::string>()};
}

std::vector<FileEntry> read_files(const Json& json) {
  std::vector<FileEntry> files;
  for (const auto& file : json) files.push_back(read_file_entry(file));
  return files;
}

std::vector<InputEntry> read_inputs(const Json& json, const std::map<std::string, Axis>& axes) {
  std::vector<InputEntry> inputs;
  for (const auto& input : json) {
    InputEntry entry{input.at("name").get<std::string>(), input.at("dtype").get<std::string>(), {}};
    for (const auto& size : input.at("shape")) {
      if (size.is_string()) {
        entry.shape.push_back({0, size.get<std::string>()});
        if (axes.count(entry.shape.back().axis) == 0) {
          throw BundleError("the input " + entry.name + " has the unknown axis " + entry.shape.back().axis);
        }
      } else {
        entry.shape.push_back({size.get<std::size_t>(), ""});
      }
    }
    inputs.push_back(std::move(entry));
  }
  return inputs;
}

/// What the parity report of an engine says, where it has one that says it.
bool parity_flag(const Json& engine, const char* name) {
  const auto parity = engine.find("parity");
  if (parity == engine.end() || !parity->is_object()) return false;
  const auto flag = parity->find(name);
  return flag != parity->end() && flag->is_boolean() && flag->get<bool>();
}

EngineEntry read_engine(const std::string& key, const Json& json) {
  EngineEntry entry{key,
                    json.at("encoder").get<std::string>(),
                    json.at("engine").get<std::string>(),
                    json.at("precision").get<std::string>(),
                    json.value("deferred", false),
                    json.value("version_compatible", false),
                    parity_flag(json, "exact_int8"),
                    read_files(json.at("files"))};
  if (entry.files.empty()) throw BundleError("the engine " + key + " has no files");
  return entry;
}

Manifest read_manifest(const Json& json) {
  Manifest manifest;
  manifest.model_sha256 = json.at("model_sha256").get<std::string>();
  manifest.embedding_dim = json.at("embedding_dim").get<std::size_t>();
  manifest.text = read_files(json.value("text", Json::array()));
  for (const auto& [name, axis] : json.at("axes").items()) {
    manifest.axes[name] = {axis.at("minimum").get<std::size_t>(), axis.at("multiple").get<std::size_t>()};
    if (manifest.axes[name].multiple == 0) throw BundleError("the axis " + name + " has the multiple 0");
  }
  for (const auto& [name, encoder] : json.at("encoders").items()) {
    manifest.encoders.emplace_back(name, read_inputs(encoder.at("inputs"), manifest.axes));
  }
  for (const auto& [key, engine] : json.at("engines").items()) {
    manifest.engines.push_back(read_engine(key, engine));
    if (manifest.inputs(manifest.engines.back().encoder) == nullptr) {
      throw BundleError("engine " + key + " belongs to an unknown encoder");
    }
  }
  return manifest;
}

std::string wanted_shape(const InputEntry& input) {
  std::string text = "(";
  for (const auto& size : input.shape) {
    text += (text.size() > 1 ? ", " : "") + (size.axis.empty() ? std::to_string(size.fixed) : size.axis);
  }
  return text + ")";
}

using Sizes = std::map<std::string, std::pair<std::size_t, std::string>>;

void check_input(const InputEntry& input, const Tensor& tensor, const Manifest& manifest, const std::string& taker,
                 Sizes& sizes) {
  if (tensor.dtype() != input.dtype) {
    throw DataError(input.name + " is " + tensor.dtype() + ", but " + taker + " takes " + input.dtype);
  }
  const auto& shape = tensor.shape();
  bool fits = shape.size() == input.shape.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i) {
    fits = !input.shape[i].axis.empty() || input.shape[i].fixed == shape[i];
  }
  if (!fits) {
    throw DataError(input.name + " has shape " + describe(shape) + ", but " + taker + " takes " + wanted_shape(input));
  }
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::string& name = input.shape[i].axis;
    if (name.empty()) continue;
    const Axis& axis = manifest.axes.at(name);
    const std::string has = input.name + " has " + std::to_string(shape[i]) + " " + name + ", but ";
    if (shape[i] < axis.minimum || shape[i] % axis.multiple != 0) {
      const std::string multiple = axis.multiple > 1 ? " and a multiple of " + std::to_string(axis.multiple) : "";
      throw DataError(has + taker + " takes at least " + std::to_string(axis.minimum) + multiple,
                      axis.multiple > 1 ? "pad with zeros and a mask that is 0 there" : "");
    }
    const auto& [other, first] = sizes.try_emplace(name, shape[i], input.name).first->second;
    if (other != shape[i]) throw DataError(has + first + " has " + std::to_string(other));
  }
}

}  // namespace

const std::vector<InputEntry>* Manifest::inputs(const std::string& encoder) const {
  for (const auto& [name, inputs] : encoders) {
    if (name == encoder) return &inputs;
  }
  return nullptr;
}

const FileEntry* Manifest::text_file(const std::string& name) const {
  for (const auto& file : text) {
    if (file.name == kTextFolder + name) return &file;
  }
  return nullptr;
}

void Manifest::check_file(const FileEntry& file, bool content) const {
  const auto path = folder / file.name;
  std::error_code failed;
  const auto size = std::filesystem::file_size(path, failed);
  if (failed) {
    throw BundleError("the bundle " + folder.string() + " lacks " + file.name,
                      "copy the bundle whole, or export it again");
  }
  if (size != file.size) {
    throw BundleError(path.string() + " has " + std::to_string(size) + " bytes, but the manifest says " +
                          std::to_string(file.size),
                      "it was cut short or changed: copy the bundle again");
  }
  if (content && sha256(path) != file.sha256) {
    throw BundleError(path.string() + " was changed since the export: its SHA-256 differs", "copy the bundle again");
  }
}

std::string unproven(const EngineEntry& entry, bool exact_int8) {
  if ((entry.precision != "int8" && entry.precision != "int8-nncf") || exact_int8) return "";
  // OpenVINO runs both, and its parity is known only where OpenVINO itself was measured on such a processor.
  if (entry.engine == "onnxruntime" || (entry.engine == "openvino" && entry.exact_int8)) {
    return "OpenVINO's int8 sums overflow on this CPU, without VNNI: export for openvino on such a CPU";
  }
  return "";
}

Manifest load_manifest(const std::filesystem::path& folder) {
  const auto path = folder / "manifest.json";
  std::ifstream file(path, std::ios::binary);
  if (!file) throw BundleError(folder.string() + " is no bundle: it has no manifest.json", "make one: eao export");
  try {
    const Json json = Json::parse(file);
    const Json format = json.is_object() ? json.value("format", Json()) : Json();
    if (format != kFormat) {
      throw BundleError(path.string() + " has format " + format.dump() + "; this version of eao reads " +
                            std::to_string(kFormat),
                        "export the bundle again, or install the version of eao that made it");
    }
    Manifest manifest = read_manifest(json);
    manifest.folder = folder;
    for (const auto& entry : manifest.text) manifest.check_file(entry, false);
    for (const auto& engine : manifest.engines) {
      for (const auto& entry : engine.files) manifest.check_file(entry, false);
    }
    return manifest;
  } catch (const Json::exception& error) {
    throw BundleError(path.string() + " is damaged: " + error.what(), "export the bundle again");
  }
}

void check_inputs(const Manifest& manifest, const std::string& encoder, const Tensors& inputs) {
  const std::string taker = "encoder '" + encoder + "'";
  const auto& entries = *manifest.inputs(encoder);
  Sizes sizes;
  for (const auto& entry : entries) {
    const auto found = inputs.find(entry.name);
    if (found == inputs.end()) throw DataError(taker + " needs " + entry.name + ", which was not given");
    check_input(entry, found->second, manifest, taker, sizes);
  }
  if (inputs.size() != entries.size()) {
    std::string takes;
    for (const auto& entry : entries) takes += (takes.empty() ? "" : ", ") + entry.name;
    throw DataError(taker + " was given " + std::to_string(inputs.size()) + " inputs", "it takes " + takes);
  }
}

}  // namespace eao
