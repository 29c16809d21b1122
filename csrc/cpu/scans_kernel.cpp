#include "primitives/pack.h"
#include "primitives/parts.h"
#include "scan_cells.h"

namespace fastwm::FASTWM_ISA {
namespace {

// A team's scratch.
template <typename T, typename O>
struct Scratch {
  O *h[2], *late;      // operands [R, D]: the carry before even and odd steps
  T *unsaved, *zeros;  // [R, saved * D] in place of what is saved, where nothing is; [D]
  Arena arena;

  Scratch(const Scan& p, int64_t rows)
      : arena([&](Arena& a) {
          for (O** operand : {&h[0], &h[1], &late}) *operand = a.take<O>(rows * p.n.D);
          unsaved = a.take<T>(p.saved ? 0 : rows * scan_saved(p.cell) * p.n.D);
          zeros = a.take_zeros<T>(p.n.D);
        }) {}
};

// The sequence of some rows, as one member of a team sees it.
template <typename T, typename O, typename Cell>
class ScanForward {
 public:
  ScanForward(const Scan& p, const Packed<O>& w, int64_t first_row, int64_t rows, Team team, const Scratch<T, O>& s)
      : p_(p), T_(p.n.T), B_(p.n.B), D_(p.n.D), w_(w), row0_(first_row), rows_(rows), team_(team), s_(s) {}

  void run() {
    const AmxTiles tiles(use_amx<O>(), rows_);
    start();
    team_.wait();
    for (int64_t t = 0; t < T_ && !team_.leaves(t); ++t) {
      base_ = t * B_ + row0_;
      products<0>(t);
      team_.wait();
      if constexpr (Cell::by_rows) {
        const Range rows = team_.range(rows_);
        for (int64_t r = rows.first; r < rows.last; ++r) gates<0>(t, r, 0, D_, saved(r), D_);
        team_.wait();
      }
      if constexpr (Cell::late) {
        products<1>(t);
        team_.wait();
      }
    }
  }

 private:
  static constexpr int kGates = scan_gates(Cell::cell), kSaved = scan_saved(Cell::cell);
  static constexpr bool kLstm = Cell::cell == ScanCell::lstm;
  static constexpr bool kRereads = Cell::by_rows || Cell::late;  // else one row of `unsaved` serves all
  static constexpr int64_t kBlock = 32;                          // rows whose sums are at work at a time

  bool first(int64_t t, int64_t r) const { return p_.is_first && p_.is_first[t * B_ + row0_ + r]; }
  T* saved(int64_t r) const {
    return p_.saved ? ptr<T>(p_.saved) + (base_ + r) * kSaved * D_ : s_.unsaved + (kRereads ? r * kSaved * D_ : 0);
  }

  void start() {
    const Range rows = team_.range(rows_);
    for (int64_t r = rows.first; r < rows.last; ++r) keep_carry(0, r, 0, D_, ptr<T>(p_.h0) + (row0_ + r) * D_);
  }

  // h as the operand of step t, which may reset it.
  void keep_carry(int64_t t, int64_t r, int64_t j, int64_t width, const T* h) const {
    O* to = s_.h[t % 2] + r * D_ + j;
    first(t, r) ? zero_rows(1, width, to, width) : convert(width, h, to);
  }

  // The sums of a stage's gates, panel by panel, and what follows them where that needs no whole row: those sums never
  // leave the first cache.
  template <int stage>
  void products(int64_t t) const {
    constexpr int split = Cell::late ? kGates - 1 : kGates;
    constexpr int begin = stage == 0 ? 0 : split, end = stage == 0 ? split : kGates;
    constexpr int64_t panel = kPanelOf<O>;
    const O* h = stage == 0 ? s_.h[t % 2] : s_.late;
    alignas(64) T tile[kBlock * (end - begin) * panel];
    const int64_t part = Cell::by_rows ? D_ : panel, stride = part * (end - begin);
    const Range tasks = team_.range(w_.panels());
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      const int64_t j = task * panel, width = w_.width(task);
      if (task + 1 < tasks.last)
        for (int gate = begin; gate < end; ++gate)
          fetch_rows(rows_ < kBlock ? rows_ : kBlock, panel, input(gate, 0, j + panel), kGates * D_);
      for (int64_t r = 0; r < rows_; r += kBlock) {
        const int64_t count = rows_ - r < kBlock ? rows_ - r : kBlock;
        T* sums = Cell::by_rows ? saved(r) + j : tile;
        for (int gate = begin; gate < end; ++gate) {
          multiply(count, h + r * D_, D_, w_, gate * w_.panels() + task, start_of(gate, r, j),
                   sums + (gate - begin) * part, stride);
        }
        if constexpr (!Cell::by_rows)
          for (int64_t i = 0; i < count; ++i) gates<stage>(t, r + i, j, width, sums + i * stride, part);
      }
    }
  }

  Start<T> start_of(int gate, int64_t r, int64_t j) const {
    if (Cell::apart(gate)) return {p_.w.bias ? ptr<T>(p_.w.bias) + j : nullptr, 0};
    return {input(gate, r, j), kGates * D_};
  }

  const T* input(int gate, int64_t r, int64_t j) const {
    return ptr<T>(p_.input) + (base_ + r) * kGates * D_ + gate * D_ + j;
  }

  template <int stage>
  void gates(int64_t t, int64_t r, int64_t j, int64_t width, const T* sums, int64_t part) const {
    const int64_t at = (base_ + r) * D_ + j, before = at - B_ * D_, row = (row0_ + r) * D_ + j;
    T* c = !kLstm ? nullptr : p_.cells ? ptr<T>(p_.cells) + at : ptr<T>(p_.c_T) + row;
    const T *old_h = s_.zeros, *old_c = s_.zeros;
    if (!first(t, r)) {
      old_h = t > 0 ? ptr<T>(p_.output) + before : ptr<T>(p_.h0) + row;
      old_c = !kLstm ? nullptr : t == 0 ? ptr<T>(p_.c0) + row : p_.cells ? c - B_ * D_ : c;
    }
    const ForwardRow<T, O> x{width,
                             D_,
                             input(0, r, j),
                             sums,
                             part,
                             saved(r) + j,
                             old_h,
                             old_c,
                             ptr<T>(p_.output) + at,
                             c,
                             s_.late + r * D_ + j};
    Cell::template forward<stage>(x, p_.w);
    if constexpr (Cell::late && stage == 0) return;
    if (t + 1 < T_) return keep_carry(t + 1, r, j, width, x.new_h);
    copy_rows(1, width, x.new_h, 0, ptr<T>(p_.h_T) + row, 0);
    if (kLstm && p_.cells) copy_rows(1, width, x.new_c, 0, ptr<T>(p_.c_T) + row, 0);
  }

  const Scan& p_;
  const int64_t T_, B_, D_;
  const Packed<O>& w_;
  const int64_t row0_, rows_;
  const Team team_;
  const Scratch<T, O>& s_;
  int64_t base_ = 0;  // row row0_ of step t, counted through [T, B]
};

template <typename T, typename O, typename Cell>
void scan(const Scan& p) {
  const int threads = max_threads();
  const int64_t D = p.n.D;
  Packed<O> weight{scan_gates(Cell::cell), D, D};
  Packings<O> packings;
  packings.add(weight, p.w.gates);
  const Arena arena([&](Arena& a) { packings.place(a); });
  packings.pack(threads);
  for_each_team<Scratch<T, O>>(
      p.n.B, packings.weights(), arena.bytes(), threads, [&](int64_t rows, int64_t) { return Scratch<T, O>(p, rows); },
      [&](int64_t first, int64_t rows, Team team, const Scratch<T, O>& scratch) {
        ScanForward<T, O, Cell>(p, weight, first, rows, team, scratch).run();
      });
}

}  // namespace

void scan_kernel(const Scan& p) {
  dispatch_scan(p, [&](auto t, auto o, auto cell) { scan<decltype(t), decltype(o), decltype(cell)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
