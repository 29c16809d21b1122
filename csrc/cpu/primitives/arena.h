// Scratch memory of a kernel: one allocation, whose size a dry run measures.
#pragma once

#include <cstring>
#include <initializer_list>

#include "fastwm/memory.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Memory handed out in aligned pieces. place(arena) takes all of them. It is called twice: first without memory, to
// measure, then on as much as that took. So nobody sums sizes by hand, and a piece beyond the sum ends the process.
//
//   Arena arena([&](Arena& a) { x = a.take<float>(rows * D), sums = a.take<float>(D); });
class Arena {
 public:
  template <typename Place>
  explicit Arena(Place place) {
    place(*this);
    size_ = used_;
    memory_ = borrow_memory(size_);
    used_ = 0;
    place(*this);
  }
  ~Arena() { give_back_memory(memory_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Null while measuring.
  template <typename T>
  T* take(int64_t count) {
    const int64_t first = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlign) / kAlign * kAlign;
    if (!memory_.data) return nullptr;
    if (used_ > size_) scratch_overflow();
    return reinterpret_cast<T*>(memory_.data + first);
  }

  template <typename T>
  T* take_zeros(int64_t count) {
    T* piece = take<T>(count);
    if (piece) std::memset(piece, 0, count * sizeof(T));
    return piece;
  }

  int64_t bytes() const { return size_; }

 private:
  static constexpr int64_t kAlign = 64;
  Memory memory_{nullptr, 0};
  int64_t size_ = 0, used_ = 0;
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
