#include "cpu.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace eao {

bool has_exact_int8() {
#if defined(__x86_64__) || defined(__i386__)
  // Leaf 7 of Intel's and AMD's manuals: AVX512_VNNI, AMX-INT8, and in its second part AVX-VNNI.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  const bool has_more = eax >= 1;
  if ((ecx >> 11 & 1U) != 0 || (edx >> 25 & 1U) != 0) return true;
  return has_more && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1U) != 0;
#else
  return true;
#endif
}

}  // namespace eao
