#include "fastwm/memory.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace fastwm {
namespace {

constexpr int64_t kAlign = 64;

struct Kept {
  static constexpr int kMost = 16;
  std::mutex mutex;
  Memory pieces[kMost];
  int count = 0;
  int64_t bytes = 0;
};

Kept& kept() {
  static Kept* memory = new Kept;  // outlives every thread
  return *memory;
}

}  // namespace

Memory borrow_memory(int64_t wanted) {
  const int64_t align = wanted < kHugePage ? kAlign : kHugePage, bytes = (wanted + align) / align * align;
  if (align == kHugePage) {
    Kept& all = kept();
    const std::lock_guard<std::mutex> lock(all.mutex);
    int best = -1;
    for (int i = 0; i < all.count; ++i)
      if (all.pieces[i].bytes >= bytes && (best < 0 || all.pieces[i].bytes < all.pieces[best].bytes)) best = i;
    if (best >= 0 && all.pieces[best].bytes <= 2 * bytes) {
      const Memory piece = all.pieces[best];
      all.pieces[best] = all.pieces[--all.count];
      all.bytes -= piece.bytes;
      return piece;
    }
  }
  char* data = static_cast<char*>(std::aligned_alloc(align, bytes));
  use_huge_pages(data, bytes);
  return {data, bytes};
}

void give_back_memory(Memory piece) {
  if (piece.bytes >= kHugePage) {
    Kept& all = kept();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.count < Kept::kMost && all.bytes + piece.bytes <= kKeptBytes) {
      all.pieces[all.count++] = piece;
      all.bytes += piece.bytes;
      return;
    }
  }
  std::free(piece.data);
}

void scratch_overflow() {
  std::fputs("fastwm: a kernel takes more scratch memory than it has measured\n", stderr);
  std::abort();
}

}  // namespace fastwm
