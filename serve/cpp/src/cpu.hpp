// What the processor can do.
#pragma once

namespace eao {

/// Whether int8 products are added in 32 bits, as with VNNI, rather than in 16, where OpenVINO's sums overflow.
bool has_exact_int8();

}  // namespace eao
