#include "eao/tensor.hpp"

#include <functional>
#include <numeric>
#include <utility>

#include "eao/error.hpp"

namespace eao {

std::size_t element_count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
}

std::string describe(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

Tensor::Tensor(Shape shape, std::vector<float> values) : shape_(std::move(shape)), values_(std::move(values)) {
  check(std::get<0>(values_).size());
}

Tensor::Tensor(Shape shape, std::vector<std::int64_t> values) : shape_(std::move(shape)), values_(std::move(values)) {
  check(std::get<1>(values_).size());
}

Tensor::Tensor(Shape shape, Mask values) : shape_(std::move(shape)), values_(std::move(values)) {
  check(std::get<2>(values_).size());
  for (const auto value : std::get<2>(values_)) {
    if (value > 1) throw DataError("a mask holds " + std::to_string(value), "masks hold 0 and 1; 1 = real token");
  }
}

void Tensor::check(std::size_t count) const {
  if (count != element_count(shape_)) {
    throw DataError(std::to_string(count) + " values do not fill the shape " + describe(shape_));
  }
}

const char* Tensor::dtype() const noexcept {
  static constexpr const char* kNames[] = {"float32", "int64", "bool"};
  return kNames[values_.index()];
}

const void* Tensor::data() const noexcept {
  return std::visit([](const auto& values) { return static_cast<const void*>(values.data()); }, values_);
}

std::size_t Tensor::bytes() const noexcept {
  return std::visit([](const auto& values) { return values.size() * sizeof(values[0]); }, values_);
}

}  // namespace eao
