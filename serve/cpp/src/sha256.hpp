// The SHA-256 of a file (FIPS 180-4).
#pragma once

#include <filesystem>
#include <string>

namespace eao {

/// 64 hexadecimal digits. Throws BundleError if the file cannot be read.
std::string sha256(const std::filesystem::path& path);

}  // namespace eao
