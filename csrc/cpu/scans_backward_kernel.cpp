#include "primitives/pack.h"
#include "primitives/parts.h"
#include "scan_cells.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The weight, transposed and packed once a call: of the gates whose sums took h, and of one that took what they made.
template <typename O>
struct Weights {
  Packings<O> packings;
  Packed<O> early, late;

  Weights(const Weight& w, int64_t D, int gates, bool has_late) : early{1, (gates - has_late) * D, D}, late{1, D, D} {
    packings.add(early, {w.data, 0, w.sn, w.sk});  // each gate's outputs follow those of the gate before
    const auto* data = static_cast<const std::conditional_t<sizeof(O) == 8, double, float>*>(w.data);
    if (has_late) packings.add(late, {data + early.K * w.sn, 0, w.sn, w.sk});
  }
  Weights(const Weights&) = delete;
};

template <typename T, typename O>
struct Scratch {
  T *d_h, *d_c, *d_late, *zeros;  // [R, D] each, [D]
  O* d_sums[2];                   // [R, gates * D], of even and odd steps
  Arena arena;

  Scratch(const ScanBackward& p, int64_t rows)
      : arena([&](Arena& a) {
          for (T** part : {&d_h, &d_c, &d_late}) *part = a.take<T>(rows * p.n.D);
          for (O** part : {&d_sums[0], &d_sums[1]}) *part = a.take<O>(rows * scan_gates(p.cell) * p.n.D);
          zeros = a.take_zeros<T>(p.n.D);
        }) {}
};

template <typename T, typename O, typename Cell>
class ScanBack {
 public:
  // `norm_sums` [2, gates * D] takes this member's share of the norm's gradients.
  ScanBack(const ScanBackward& p, const Weights<O>& w, int64_t first_row, int64_t rows, Team team,
           const Scratch<T, O>& s, T* norm_sums)
      : p_(p), T_(p.n.T), B_(p.n.B), D_(p.n.D), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s),
        norm_sums_(norm_sums) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    start();
    team_.wait();
    for (int64_t t = T_ - 1; t >= 0 && !team_.leaves(T_ - 1 - t); --t) {
      base_ = t * B_ + row0_;
      carry(t);
      team_.wait();
      if constexpr (Cell::by_rows) {
        const Range rows = team_.range(rows_);
        for (int64_t r = rows.first; r < rows.last; ++r) gates<0>(t, r, 0, D_);
        team_.wait();
      }
      if constexpr (Cell::late) {
        late(t);
        team_.wait();
      }
    }
    base_ = row0_ - B_;
    carry(-1);
  }

 private:
  static constexpr int kGates = scan_gates(Cell::cell), kSaved = scan_saved(Cell::cell);
  static constexpr bool kLstm = Cell::cell == ScanCell::lstm;

  bool first(int64_t t, int64_t r) const { return p_.is_first && p_.is_first[t * B_ + row0_ + r]; }

  void start() {
    const Range rows = team_.range(rows_);
    const int64_t at = rows.first * D_, from = row0_ * D_ + at, count = rows.last - rows.first;
    const auto begin = [&](const void* grad, T* to) {
      grad ? copy_rows(count, D_, ptr<T>(grad) + from, D_, to + at, D_) : zero_rows(count, D_, to + at, D_);
    };
    begin(p_.g_h, s_.d_h);
    begin(p_.g_c, s_.d_c);
  }

  // The gradient of the carry after step t, complete; after step -1 it is the start's.
  void carry(int64_t t) {
    const Range tasks = team_.range(w_.early.panels());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t j = task * kPanelOf<O>, width = w_.early.width(task);
      if (t >= 0) {  // what the gates will read
        if (p_.g_output) fetch_rows(rows_, width, ptr<T>(p_.g_output) + base_ * D_ + j, D_);
        for (int i = 0; i < (Cell::by_rows ? 0 : kSaved); ++i)
          fetch_rows(rows_, width, ptr<T>(p_.saved) + base_ * kSaved * D_ + i * D_ + j, kSaved * D_);
      }
      if (t + 1 < T_) multiply(rows_, d_sums(t + 1), kGates * D_, w_.early, task, s_.d_h + j, D_);
      for (int64_t r = 0; r < rows_; ++r) {
        T *d_h = s_.d_h + r * D_ + j, *d_c = s_.d_c + r * D_ + j;
        if (t + 1 < T_ && first(t + 1, r))
          for (T* d : {d_h, d_c}) zero_rows(1, width, d, 0);
        if (t < 0) {
          copy_rows(1, width, d_h, 0, ptr<T>(p_.d_h) + (row0_ + r) * D_ + j, 0);
          if (kLstm) copy_rows(1, width, d_c, 0, ptr<T>(p_.d_c) + (row0_ + r) * D_ + j, 0);
          continue;
        }
        if (p_.g_output) add_scaled(width, T(1), ptr<T>(p_.g_output) + (base_ + r) * D_ + j, d_h);
        if constexpr (!Cell::by_rows) gates<0>(t, r, j, width);
      }
    }
  }

  // Step t's operands: where every gate's sum has the gradient of the input's part, that one.
  const O* d_sums(int64_t t) const {
    if constexpr (Cell::last_gate == LastGate::alike)
      return operand_of<T, O>(ptr<T>(p_.d_input) + (t * B_ + row0_) * kGates * D_, s_.d_sums[t % 2]);
    else return s_.d_sums[t % 2];
  }

  // By way of the product that waited for the other gates.
  void late(int64_t t) {
    const Range tasks = team_.range(w_.late.panels());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t j = task * kPanelOf<O>, width = w_.late.width(task);
      multiply(rows_, d_sums(t) + w_.early.K, kGates * D_, w_.late, task, kZeros<T>, s_.d_late + j, D_);
      for (int64_t r = 0; r < rows_; ++r) gates<1>(t, r, j, width);
    }
  }

  template <int stage>
  void gates(int64_t t, int64_t r, int64_t j, int64_t width) const {
    const int64_t at = (base_ + r) * D_ + j, before = at - B_ * D_, row = (row0_ + r) * D_ + j, mine = r * D_ + j;
    const T *old_h = s_.zeros, *old_c = s_.zeros;
    if (!first(t, r)) {
      old_h = t > 0 ? ptr<T>(p_.output) + before : ptr<T>(p_.h0) + row;
      old_c = !kLstm ? nullptr : t > 0 ? ptr<T>(p_.cells) + before : ptr<T>(p_.c0) + row;
    }
    const BackwardRow<T, O> x{width,
                              D_,
                              ptr<T>(p_.saved) + (base_ + r) * kSaved * D_ + j,
                              old_h,
                              old_c,
                              kLstm ? ptr<T>(p_.cells) + at : nullptr,
                              s_.d_h + mine,
                              s_.d_c + mine,
                              ptr<T>(p_.d_input) + (base_ + r) * kGates * D_ + j,
                              s_.d_sums[t % 2] + r * kGates * D_ + j,
                              s_.d_late + mine,
                              norm_sums_,
                              norm_sums_ + kGates * D_};
    Cell::template backward<stage>(x, p_.w);
  }

  const ScanBackward& p_;
  const int64_t T_, B_, D_;
  const Weights<O>& w_;
  const int64_t row0_, rows_;
  const Team team_;
  const Scratch<T, O>& s_;
  T* norm_sums_;
  int64_t base_ = 0;
};

constexpr int64_t kGradRows = 256;  // rows of operands that stay in cache while a weight's gradient takes them in

// The weight's gradient: one product over all rows, of each sum's gradient and what the sum had read.
template <typename T, typename O, typename Cell>
class WeightGrad {
 public:
  WeightGrad(const ScanBackward& p, int threads)
      : p_(p), D_(p.n.D), rows_(p.n.T * p.n.B), most_(rows_ < kGradRows ? rows_ : kGradRows), arena_([&](Arena& a) {
          for (T** part : {&h_, &own_}) *part = a.take<T>(most_ * D_);
          for (int i = 0; i < threads; ++i) scratch_[i] = a.take<O>(GradGemm<T, O>::scratch(kGates * D_, most_));
        }) {
    if (rows_ == 0) std::memset(p.d_weight, 0, kGates * D_ * D_ * sizeof(T));
    if (rows_ * kGates * D_ * D_ < kColumnWork) threads = 1;
#pragma omp parallel num_threads(threads)
    run(team_of_all());
  }

 private:
  static constexpr int kGates = scan_gates(Cell::cell), kSaved = scan_saved(Cell::cell);
  static constexpr bool kOwn = Cell::last_gate != LastGate::alike;

  void run(const Team& team) {
    const AmxTiles tiles(use_amx<O>(), 16);
    const Range bias = team.range(D_);
    T *d_weight = ptr<T>(p_.d_weight), *d_bias = ptr<T>(p_.d_bias);
    const bool sum_bias = Cell::last_gate == LastGate::reset_gradient && p_.w.bias;
    if (sum_bias) std::memset(d_bias + bias.first, 0, (bias.last - bias.first) * sizeof(T));
    for (int64_t first = 0; first < rows_; first += most_) {
      const int64_t count = rows_ - first < most_ ? rows_ - first : most_;
      const Range mine = team.range(count);
      for (int64_t r = mine.first; r < mine.last; ++r) operands(first + r, h_ + r * D_, own_ + r * D_);
#pragma omp barrier
      const T *d_input = ptr<T>(p_.d_input) + first * kGates * D_, *last = d_input + (kGates - 1) * D_;
      const int64_t alike = kOwn ? kGates - 1 : kGates, wide = kGates * D_;
      add({1, alike * D_, D_, d_input, wide, 0, h_, D_, d_weight, first == 0}, team, count);
      T* d_last = d_weight + alike * D_ * D_;
      if (Cell::last_gate == LastGate::reset_gradient)
        add({1, D_, D_, own_, D_, 0, h_, D_, d_last, first == 0}, team, count);
      if (Cell::last_gate == LastGate::reset_carry)
        add({1, D_, D_, last, wide, 0, own_, D_, d_last, first == 0}, team, count);
      for (int64_t r = 0; sum_bias && r < count; ++r)
        add_scaled(bias.last - bias.first, T(1), own_ + r * D_ + bias.first, d_bias + bias.first);
#pragma omp barrier
    }
  }

  // The carry before row `row` of [T, B]; and the last gate's own operand.
  void operands(int64_t row, T* h, T* own) const {
    const T* before = row < p_.n.B ? ptr<T>(p_.h0) + row * D_ : ptr<T>(p_.output) + (row - p_.n.B) * D_;
    const bool reset = p_.is_first && p_.is_first[row];
    reset ? zero_rows(1, D_, h, D_) : copy_rows(1, D_, before, D_, h, D_);
    if constexpr (kOwn) {
      const bool carry = Cell::last_gate == LastGate::reset_carry;
      const T* r = ptr<T>(p_.saved) + row * kSaved * D_;
      const T* x = carry ? h : ptr<T>(p_.d_input) + (row * kGates + kGates - 1) * D_;
#pragma omp simd
      for (int64_t i = 0; i < D_; ++i) own[i] = r[i] * x[i];
    }
  }

  void add(const GradProduct<T>& product, const Team& team, int64_t count) const {
    add_product(product, count, team, scratch_[team.rank]);
  }

  const ScanBackward& p_;
  const int64_t D_, rows_, most_;
  T *h_, *own_;  // [most, D]
  O* scratch_[kMaxThreads];
  Arena arena_;
};

template <typename T, typename O, typename Cell>
void scan_backward(const ScanBackward& p) {
  constexpr int gates = scan_gates(Cell::cell);
  const int threads = max_threads();
  const int64_t wide = gates * p.n.D;
  Weights<O> weights(p.w.gates, p.n.D, gates, Cell::late);
  const Arena arena([&](Arena& a) { weights.packings.place(a); });
  weights.packings.pack(threads);

  // Each thread sums the norm's gradients of its rows; they are added up in order at the end.
  const int64_t norm = Cell::by_rows ? 2 * wide : 0;
  T* norm_sums;
  const Arena sums([&](Arena& a) { norm_sums = a.take_zeros<T>(threads * norm); });
  for_each_team<Scratch<T, O>>(
      p.n.B, weights.packings.weights(), arena.bytes(), threads,
      [&](int64_t rows, int64_t) { return Scratch<T, O>(p, rows); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch) {
        T* mine = norm_sums + thread_number() * norm;
        ScanBack<T, O, Cell>(p, weights, first, rows, team, scratch, mine).run();
      });
  if constexpr (Cell::by_rows) {
    for (int i = 1; i < threads; ++i) add_scaled(norm, T(1), norm_sums + i * norm, norm_sums);
    std::memcpy(p.d_scale, norm_sums, wide * sizeof(T));
    std::memcpy(p.d_bias, norm_sums + wide, wide * sizeof(T));
  }
  WeightGrad<T, O, Cell>(p, threads);
}

}  // namespace

void scan_backward_kernel(const ScanBackward& p) {
  dispatch_scan(p, [&](auto t, auto o, auto cell) { scan_backward<decltype(t), decltype(o), decltype(cell)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
