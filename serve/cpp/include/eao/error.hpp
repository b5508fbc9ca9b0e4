// Errors that are the caller's to mend.
#pragma once

#include <stdexcept>
#include <string>

namespace eao {

/// What is wrong, naming the file or value at fault, and what to do next. A bug throws anything else.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, const std::string& hint = "")
      : std::runtime_error(hint.empty() ? message : message + "\n     " + hint), message_(message), hint_(hint) {}

  const std::string& message() const noexcept { return message_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  std::string message_;
  std::string hint_;
};

/// The bundle is damaged, or has nothing that runs here.
class BundleError : public Error {
 public:
  using Error::Error;
};

/// What was to be embedded is wrong: a sentence without words, a tensor of another shape.
class DataError : public Error {
 public:
  using Error::Error;
};

/// The server cannot be reached, or refused a request.
class ServerError : public Error {
 public:
  using Error::Error;
};

}  // namespace eao
