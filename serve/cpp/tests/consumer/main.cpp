// How near two sentences are to each other.
#include <eao/encoder.hpp>
#include <iostream>
#include <numeric>

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: consumer BUNDLE" << std::endl;
    return 2;
  }
  try {
    const auto encoder = eao::Encoder::open(arguments[1]);
    const auto rows = encoder.embed({"a dog barks", "the dog"});
    std::cout << std::inner_product(rows.row(0), rows.row(0) + rows.dim, rows.row(1), 0.0F) << std::endl;
  } catch (const eao::Error& error) {
    std::cerr << error.what() << std::endl;
    return 2;
  }
}
