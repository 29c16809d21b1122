// Scratch memory of the CPU kernels.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastwm {

constexpr int64_t kHugePage = 2 << 20;

// Asks that memory not yet touched come in huge pages, where it is large: a fault for each small page costs more than to
// write it.
inline void use_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t start = reinterpret_cast<uintptr_t>(data), mask = kHugePage - 1;
  const uintptr_t first = (start + mask) & ~mask, last = (start + static_cast<uintptr_t>(bytes)) & ~mask;
  if (bytes >= 2 * kHugePage && first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

struct Memory {
  char* data;
  int64_t bytes;
};

// At least so many bytes, at a multiple of 64; large pieces in huge pages. Large pieces that are given back are kept, as fresh
// pages cost a kernel more than what it does in them; at most kKeptBytes of them.
Memory borrow_memory(int64_t bytes);
void give_back_memory(Memory);

[[noreturn]] void scratch_overflow();  // a kernel takes more scratch memory than it has measured

constexpr int64_t kKeptBytes = 128 << 20;

}  // namespace fastwm
