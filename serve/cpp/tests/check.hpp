// What tests stand on: a check that says where it failed, files with expected values, errors that must come.
#pragma once

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "eao/error.hpp"

#define CHECK(condition, explanation)                                                                   \
  do {                                                                                                  \
    if (!(condition)) {                                                                                 \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #condition ": " << (explanation) << std::endl;   \
      std::exit(EXIT_FAILURE);                                                                          \
    }                                                                                                   \
  } while (false)

inline nlohmann::json read_json(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good(), path);
  return nlohmann::json::parse(file);
}

/// Run `work`, which must throw `Expected` with `part` in its message or hint.
template <typename Expected, typename Work>
void check_refused(const std::string& part, Work work) {
  try {
    work();
  } catch (const Expected& error) {
    CHECK(std::string(error.what()).find(part) != std::string::npos, error.what());
    return;
  }
  CHECK(false, "nothing was thrown, though '" + part + "' should be refused");
}
