// Arrays that go into an encoder, and the embeddings that come out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace eao {

using Shape = std::vector<std::size_t>;

/// The number of elements of a shape.
std::size_t element_count(const Shape& shape);

/// A shape in words, such as "(2, 40, 128)".
std::string describe(const Shape& shape);

/// An array in row-major order: float32, int64, or masks, which hold one byte per element, 0 or 1.
class Tensor {
 public:
  using Mask = std::vector<std::uint8_t>;

  /// Throws DataError if the values do not fill the shape.
  Tensor(Shape shape, std::vector<float> values);
  Tensor(Shape shape, std::vector<std::int64_t> values);
  Tensor(Shape shape, Mask values);

  const Shape& shape() const noexcept { return shape_; }

  /// As in a bundle's manifest: "float32", "int64" or "bool".
  const char* dtype() const noexcept;
  const void* data() const noexcept;
  std::size_t bytes() const noexcept;

 private:
  void check(std::size_t count) const;

  Shape shape_;
  std::variant<std::vector<float>, std::vector<std::int64_t>, Mask> values_;
};

/// Inputs by the names that the bundle's manifest gives them: "video", "video_mask", "audio" ...
using Tensors = std::map<std::string, Tensor>;

/// Rows of unit length.
struct Embeddings {
  std::size_t rows = 0;
  std::size_t dim = 0;
  std::vector<float> values;

  const float* row(std::size_t index) const { return values.data() + index * dim; }
};

}  // namespace eao
