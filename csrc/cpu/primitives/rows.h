// Elementwise work on rows between two products, and rows as operands: conversion, zeros, sums.
#pragma once

#include <type_traits>

#include "gemm_bf16.h"

namespace fastwm::FASTWM_ISA {
namespace {

template <typename T>
const T* ptr(const void* p) {
  return static_cast<const T*>(p);
}
template <typename T>
T* ptr(void* p) {
  return static_cast<T*>(p);
}

// T is what sums are in, O what products multiply.
template <typename T, typename O>
constexpr bool kSame = std::is_same_v<T, O>;
template <typename T, typename O>
constexpr bool kBf16Operands = sizeof(T) == 4 && sizeof(O) == 2;

template <typename T>
void zero_rows(int64_t rows, int64_t width, T* to, int64_t stride) {
  if (width == kPanel<T>)
    for (int64_t r = 0; r < rows; ++r) std::memset(to + r * stride, 0, kPanel<T> * sizeof(T));
  else
    for (int64_t r = 0; r < rows; ++r) std::memset(to + r * stride, 0, width * sizeof(T));
}

template <typename T, typename O>
void convert(int64_t width, const T* from, O* to) {
#if FASTWM_BF16
  if constexpr (kBf16Operands<T, O>) return to_bf16(width, from, to);
#endif
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(from[i], to[i]);
}

// Keeps x as an operand. Where the types are the same nothing is copied, and operand_of returns x itself.
template <typename T, typename O>
void keep_operand(int64_t width, const T* x, O* kept) {
  if constexpr (!kSame<T, O>) convert(width, x, kept);
}

template <typename T, typename O>
const O* operand_of(const T* x, const O* kept) {
  if constexpr (kSame<T, O>) return x;
  else return kept;
}

// to = number(0), number(1), ...; bfloat16 by way of floats, since the CPU converts whole vectors by one instruction.
template <typename T, typename O, typename Number>
void fill(int64_t width, O* to, Number number) {
  if constexpr (kBf16Operands<T, O>) {
    constexpr int64_t kBlock = 64;
    T block[kBlock];
    for (int64_t first = 0; first < width; first += kBlock) {
      const int64_t count = width - first < kBlock ? width - first : kBlock;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) block[i] = number(first + i);
      convert(count, block, to + first);
    }
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) narrow(number(i), to[i]);
}

template <typename T>
void add_scaled(int64_t width, T scale, const T* x, T* sum) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) sum[i] += scale * x[i];
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
