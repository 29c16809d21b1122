// Scratch memory of a kernel.
#pragma once

#include "fastwm/memory.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Scratch of a call: one allocation, handed out in aligned pieces.
class Arena {
 public:
  explicit Arena(int64_t bytes) : memory_(borrow_memory(bytes)) {}
  ~Arena() { give_back_memory(memory_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(memory_.data + used_);
    used_ += round(count * static_cast<int64_t>(sizeof(T)));
    return piece;
  }

  template <typename T>
  static int64_t bytes(int64_t count) {
    return round(count * static_cast<int64_t>(sizeof(T)));
  }

 private:
  static constexpr int64_t kAlign = 64;
  static int64_t round(int64_t bytes) { return (bytes + kAlign) / kAlign * kAlign; }
  const Memory memory_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace fastwm::FASTWM_ISA
