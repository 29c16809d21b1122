// Vectors of the widest kind, and sums over an array. A sum that the compiler vectorises by itself ends in a chain of as
// many additions as a vector has lanes.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastwm::FASTWM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};

template <typename T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
typename Vector<T>::type& vector_at(T* x) {
  return *reinterpret_cast<typename Vector<T>::type*>(x);
}
template <typename T>
const typename Vector<T>::type& vector_at(const T* x) {
  return *reinterpret_cast<const typename Vector<T>::type*>(x);
}

template <typename T>
T total(typename Vector<T>::type lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)lanes);
  else return _mm512_reduce_add_pd((__m512d)lanes);
#else
  T sum = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) sum += lanes[lane];
  return sum;
#endif
}

template <typename T>
T most(typename Vector<T>::type lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_max_ps((__m512)lanes);
  else return _mm512_reduce_max_pd((__m512d)lanes);
#else
  T top = lanes[0];
  for (int64_t lane = 1; lane < kLanes<T>; ++lane) top = lanes[lane] > top ? lanes[lane] : top;
  return top;
#endif
}

// Sums by four vectors that do not wait for each other: of vector(i), numbers i and what follows, and of number(i) for
// those that make no vector.
template <typename T, typename Vectors, typename Numbers>
T sum_of(int64_t count, Vectors vector, Numbers number) {
  typename Vector<T>::type sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes<T> <= count; i += 4 * kLanes<T>)
    for (int64_t k = 0; k < 4; ++k) sums[k] += vector(i + k * kLanes<T>);
  for (; i + kLanes<T> <= count; i += kLanes<T>) sums[0] += vector(i);
  T rest = 0;
  for (; i < count; ++i) rest += number(i);
  return total<T>((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

template <typename T>
T sum(int64_t count, const T* x) {
  return sum_of<T>(count, [x](int64_t i) { return vector_at(x + i); }, [x](int64_t i) { return x[i]; });
}

template <typename T>
T dot(int64_t count, const T* x, const T* y) {
  return sum_of<T>(
      count, [x, y](int64_t i) { return vector_at(x + i) * vector_at(y + i); },
      [x, y](int64_t i) { return x[i] * y[i]; });
}

// The largest of whole vectors.
template <typename T>
T largest(int64_t count, const T* x) {
  typename Vector<T>::type top = vector_at(x);
  for (int64_t i = kLanes<T>; i < count; i += kLanes<T>) top = vector_at(x + i) > top ? vector_at(x + i) : top;
  return most<T>(top);
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
