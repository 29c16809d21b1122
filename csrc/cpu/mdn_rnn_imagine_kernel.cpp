#include "fastwm/params/mdn_rnn_imagine.h"

#include <sched.h>
#include <time.h>

#include "mdn_rnn_rows.h"
#include "primitives/pack.h"
#include "primitives/parts.h"
#include "fastwm/stop.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kDreams = 64;  // rows that a thread takes at a time: the weights are read once for all of them
constexpr int64_t kStride = 32;  // steps before it gives them back and takes others
constexpr timespec kNap{0, 50'000};

// Dreams that wait for a thread, in a ring: each thread takes some, moves them on by kStride steps, and puts back
// those that live. So the tiles stay full as dreams end, and no thread is left with the long ones.
class Waiting {
 public:
  Waiting(int64_t* ring, int64_t count, int threads)
      : ring_(ring), size_(count), waiting_(count), alive_(count), threads_(threads) {
    for (int64_t n = 0; n < count; ++n) ring_[n] = n;
  }

  // A thread's share of those that wait; none are left to anyone where it returns 0, or the user has stopped the call.
  int64_t take(int64_t* rows) {
    for (int spins = 0; !stopped(); ++spins) {
      lock();
      const int64_t share = (alive_ + threads_ - 1) / threads_;
      int64_t count = share < kDreams ? share : kDreams;
      count = count < waiting_ ? count : waiting_;
      for (int64_t i = 0; i < count; ++i) rows[i] = ring_[(first_ + i) % size_];
      first_ += count;
      waiting_ -= count;
      const bool over = alive_ == 0;
      unlock();
      if (count > 0 || over) return count;
      if (spins > 256) nanosleep(&kNap, nullptr);  // the others may need this core to finish
    }
    return 0;
  }

  bool stopped() { return stop_.before(0, false); }

  void put_back(const int64_t* rows, int64_t count, int64_t ended) {
    lock();
    for (int64_t i = 0; i < count; ++i) ring_[(first_ + waiting_ + i) % size_] = rows[i];
    waiting_ += count;
    alive_ -= ended;
    unlock();
  }

 private:
  void lock() {
    while (__atomic_exchange_n(&locked_, true, __ATOMIC_ACQUIRE)) sched_yield();
  }
  void unlock() { __atomic_store_n(&locked_, false, __ATOMIC_RELEASE); }

  int64_t* ring_;
  int64_t size_, first_ = 0, waiting_, alive_;
  int threads_;
  bool locked_ = false;
  Stop stop_;
};

// Only the mean and log-std of the component that was drawn are needed. In float32 they are products of their own, a
// fifth of a dream's arithmetic less than all components'; AMX has all of them sooner.
template <typename O>
constexpr bool kAllComponents = sizeof(O) == 2;

inline int64_t padded(int64_t width) { return (width + 15) / 16 * 16; }

// T is what sums, state and samples are in, O what products multiply.
template <typename T, typename O>
struct Weights {
  Packings<O> packings;
  Packed<O> ih[4], hh[4];  // by gate: i, f, g, o
  Packed<O> out;           // matrices [H, Z]: the logits of each component, and means and log-stds if all are computed
  T* moments;              // else [Z, K, 2, padded H]: the mean's and the log-std's column of each component
  T* gate_bias;            // [4, H], the constant of the forget gate added
  T *out_bias, *extra;     // [3K, Z], [extra, H]

  explicit Weights(const MdnRnnImagine& p) : out{(kAllComponents<O> ? 3 : 1) * p.K, p.H, p.Z} {
    for (int i = 0; i < 4; ++i) {
      const auto gate = [&](const Weight& w) {
        return Weight{ptr<T>(w.data) + place_of(p, i) * p.H * w.sn, 0, w.sk, w.sn};
      };
      ih[i] = {1, p.I, p.H}, hh[i] = {1, p.H, p.H};
      packings.add(ih[i], gate(p.ih));
      packings.add(hh[i], gate(p.hh));
    }
    packings.add(out, {mixtures(p), p.out.sn, p.out.sk, 3 * p.K * p.out.sn});
  }
  Weights(const Weights&) = delete;

  void place(Arena& arena, const MdnRnnImagine& p) {
    packings.place(arena);
    gate_bias = arena.take<T>(4 * p.H);
    out_bias = arena.take<T>(3 * p.K * p.Z);
    moments = arena.take_zeros<T>(moment_count(p));
    extra = arena.take<T>(p.extra * p.H);
  }

  void pack(const MdnRnnImagine& p, int threads) const {
    packings.pack(threads);
    for (int i = 0; i < 4; ++i) {
      const T constant = i == 1 ? static_cast<T>(p.forget_bias) : 0;
      for (int64_t j = 0; j < p.H; ++j) gate_bias[i * p.H + j] = ptr<T>(p.bias)[place_of(p, i) * p.H + j] + constant;
    }
    for (int64_t g = 0; g < 3 * p.K; ++g)
      for (int64_t z = 0; z < p.Z; ++z) out_bias[g * p.Z + z] = ptr<T>(p.out_bias)[p.extra + z * 3 * p.K + g];
    for (int64_t i = 0; i < moment_count(p) / padded(p.H); ++i) {
      const int64_t z = i / (2 * p.K), k = i / 2 % p.K, part = 1 + i % 2;
      const Weight column{mixtures(p) + (z * 3 * p.K + part * p.K + k) * p.out.sn, 0, 0, p.out.sk};
      pack_rows(column, 0, 1, p.H, moments + i * padded(p.H));
    }
    pack_rows({p.out.data, 0, p.out.sn, p.out.sk}, 0, p.extra, p.H, extra);
  }

 private:
  static int64_t moment_count(const MdnRnnImagine& p) { return kAllComponents<O> ? 0 : 2 * p.Z * p.K * padded(p.H); }
  static const T* mixtures(const MdnRnnImagine& p) { return ptr<T>(p.out.data) + p.extra * p.out.sn; }
  // Where the weights have gate i.
  static int place_of(const MdnRnnImagine& p, int i) { return p.ijfo && (i == 1 || i == 2) ? 3 - i : i; }
};

// The rows that a thread has in hand, one after the other.
template <typename T, typename O>
struct Scratch {
  static constexpr int64_t kGateWidth = 4 * kPanelOf<O>;
  O *x, *h, *next_h;         // operands [R, I] [R, padded H] [R, padded H]
  T *gates, *out, *mixture;  // [R, 4, panel] [R, 3K, Z] [3, Z]
  T *mean, *log_std;         // [R, Z], of the components drawn
  T* nothing;                // [R, Z]: 0, or NaN where none can be drawn
  int32_t* index;            // [R, Z]
  T* action;                 // [A]
  float *uniform, *normal;
  int64_t rows[kDreams];
  Arena arena;

  explicit Scratch(const MdnRnnImagine& p) : arena([&](Arena& a) { place(a, p); }) {}

 private:
  void place(Arena& arena, const MdnRnnImagine& p) {
    x = arena.take<O>(kDreams * p.I);
    for (O** hidden : {&h, &next_h}) *hidden = arena.take_zeros<O>(kDreams * padded(p.H));
    gates = arena.take<T>(kDreams * kGateWidth);
    out = arena.take<T>(kDreams * 3 * p.K * p.Z);
    mixture = arena.take<T>(3 * p.Z);
    for (T** part : {&mean, &log_std, &nothing}) *part = arena.take<T>(kDreams * p.Z);
    index = arena.take<int32_t>(kDreams * p.Z);
    action = arena.take<T>(p.A);
    for (float** draws : {&uniform, &normal}) *draws = arena.take<float>(p.Z + 3);
  }
};

// The dreams of one thread.
template <typename T, typename O>
class Dreamer {
 public:
  // states [N, Z + 2H]: z, c and h of every dream
  Dreamer(const MdnRnnImagine& p, const Weights<T, O>& w, T* states, Scratch<T, O>& s)
      : p_(p), w_(w), states_(states), s_(s), ldh_(padded(p.H)) {}

  void run(Waiting& waiting) {
    while ((rows_ = waiting.take(s_.rows)) > 0) {
      const int64_t taken = rows_;
      for (int64_t r = 0; r < rows_; ++r) convert(p_.H, hidden(r), s_.h + r * ldh_);
      for (int64_t i = 0; i < kStride && rows_ > 0 && !waiting.stopped(); ++i) step();
      waiting.put_back(s_.rows, rows_, taken - rows_);
    }
  }

 private:
  int64_t n(int64_t r) const { return s_.rows[r]; }
  T* state(int64_t r) const { return states_ + n(r) * (p_.Z + 2 * p_.H); }
  T* cell(int64_t r) const { return state(r) + p_.Z; }
  T* hidden(int64_t r) const { return cell(r) + p_.H; }
  // AMX takes whole tiles; results for the rows beyond the last are not used.
  int64_t product_rows() const { return sizeof(O) == 2 ? (rows_ + 15) / 16 * 16 : rows_; }

  // Not inlined: among so much else the inner loop runs out of registers, a fifth of its speed.
  __attribute__((noinline)) static void product(int64_t M, const O* a, int64_t lda, const Packed<O>& w, int64_t task,
                                                Start<T> start, T* c, int64_t ldc) {
    multiply(M, a, lda, w, task, start, c, ldc);
  }

  void step() {
    for (int64_t r = 0; r < rows_; ++r) act(r);
    lstm();
    outputs();
    for (int64_t r = 0; r < rows_; ++r) choose(r);
    moments();
    for (int64_t r = 0; r < rows_; ++r) sample(r);
    for (int64_t r = rows_; r-- > 0;) finish(r);
  }

  void act(int64_t r) const {
    const int64_t Z = p_.Z, H = p_.H, t = p_.lengths[n(r)], candidate = n(r) / (p_.N / p_.P);
    const T *z = state(r), *h = hidden(r);
    for (int64_t a = 0; a < p_.A; ++a) {
      const T* w = ptr<T>(p_.controllers) + (candidate * p_.A + a) * p_.F;
      T sum = p_.controller_bias ? ptr<T>(p_.controller_bias)[candidate * p_.A + a] : 0;
      sum += p_.F == Z + H ? dot(Z, w, z) + dot(H, w + Z, h) : dot(p_.F, w, z);
      s_.action[a] = vtanh(sum);
    }
    if (p_.car) {
      T &gas = s_.action[1], &brake = s_.action[2];
      gas = (gas + 1) / 2;
      brake = brake < 0 ? 0 : brake;
    }
    O* x = s_.x + r * p_.I;
    convert(Z, z, x);
    convert(p_.A, s_.action, x + Z);
    if (p_.I > p_.Z + p_.A) narrow(t == 0 ? T(1) : T(0), x[Z + p_.A]);
    if (p_.action) std::memcpy(ptr<T>(p_.action) + (t * p_.N + n(r)) * p_.A, s_.action, p_.A * sizeof(T));
  }

  void lstm() const {
    constexpr int64_t kWidth = kPanelOf<O>, kRow = Scratch<T, O>::kGateWidth;
    const int64_t H = p_.H, M = product_rows();
    for (int64_t panel = 0; panel < w_.hh[0].panels(); ++panel) {
      const int64_t j = panel * kWidth, width = w_.hh[0].width(panel);
      for (int i = 0; i < 4; ++i) {
        T* gate = s_.gates + i * kWidth;
        product(M, s_.x, p_.I, w_.ih[i], panel, {w_.gate_bias + i * H + j, 0}, gate, kRow);
        product(M, s_.h, ldh_, w_.hh[i], panel, {gate, kRow}, gate, kRow);
      }
      for (int64_t r = 0; r < rows_; ++r) {
        const T* gate = s_.gates + r * kRow;
        lstm_row(width, gate, gate + kWidth, gate + 2 * kWidth, gate + 3 * kWidth, cell(r) + j, hidden(r) + j,
                 s_.next_h + r * ldh_ + j);
      }
    }
    std::swap(s_.h, s_.next_h);
  }

  void outputs() const {
    const Packed<O>& w = w_.out;
    const int64_t width = w.blocks * w.N, M = product_rows();
    for (int64_t task = 0; task < w.tasks(); ++task) {
      const int64_t panel = task % w.panels(), column = task / w.panels() * w.N + panel * kPanelOf<O>;
      product(M, s_.h, ldh_, w, task, {w_.out_bias + column, 0}, s_.out + column, width);
    }
  }

  int64_t t(int64_t r) const { return p_.lengths[n(r)]; }

  template <PhiloxKind kind>
  void draw(int64_t r, int64_t first, float* numbers) const {
    const int64_t* stream = p_.seed_offset + 2 * n(r);
    draw_row<kind>((p_.Z + 3) / 4, stream[0], static_cast<uint64_t>(stream[1]) + static_cast<uint64_t>(t(r)), first,
                   numbers);
  }

  void choose(int64_t r) const {
    draw<PhiloxKind::uniform>(r, 0, s_.uniform);
    choose_row(p_.Z, p_.K, s_.out + r * w_.out.blocks * p_.Z, static_cast<T>(1 / p_.temperature), s_.uniform,
               s_.mixture, s_.index + r * p_.Z, s_.nothing + r * p_.Z);
  }

  // The mean and log-std of the components drawn.
  void moments() const {
    const int64_t Z = p_.Z, K = p_.K;
    if constexpr (kAllComponents<O>) {
      for (int64_t r = 0; r < rows_; ++r) {
        const T* all = s_.out + r * 3 * K * Z;
        for (int64_t z = 0; z < Z; ++z) {
          s_.mean[r * Z + z] = all[(K + s_.index[r * Z + z]) * Z + z];
          s_.log_std[r * Z + z] = all[(2 * K + s_.index[r * Z + z]) * Z + z];
        }
      }
    } else {
      for (int64_t z = 0; z < Z; ++z)
        for (int64_t k = 0; k < K; ++k) {  // the rows that drew it, together
          int64_t rows[kDreams + 1], count = 0;
          for (int64_t r = 0; r < rows_; ++r) rows[count] = r, count += s_.index[r * Z + z] == k;
          int64_t i = 0;
          for (; i + 4 <= count; i += 4) moments_of<4>(z, k, rows + i);
          for (; i < count; ++i) moments_of<1>(z, k, rows + i);
        }
    }
  }

  template <int count>
  void moments_of(int64_t z, int64_t k, const int64_t* rows) const {
    const T *w = w_.moments + (z * p_.K + k) * 2 * ldh_, *bias = w_.out_bias + (p_.K + k) * p_.Z + z;
    const T* h[count];
    T sums[count][2];
    for (int m = 0; m < count; ++m) h[m] = s_.h + rows[m] * ldh_;
    dot_pairs<count>(h, w, ldh_, sums);
    for (int m = 0; m < count; ++m) {
      s_.mean[rows[m] * p_.Z + z] = bias[0] + sums[m][0];
      s_.log_std[rows[m] * p_.Z + z] = bias[p_.K * p_.Z] + sums[m][1];
    }
  }

  void sample(int64_t r) const {
    const int64_t Z = p_.Z;
    draw<PhiloxKind::normal>(r, (Z + 3) / 4, s_.normal);
    noise_row(Z, s_.mean + r * Z, s_.log_std + r * Z, s_.nothing + r * Z,
              static_cast<T>(__builtin_sqrt(p_.temperature)), s_.normal, state(r));
    if (p_.z) std::memcpy(ptr<T>(p_.z) + (t(r) * p_.N + n(r)) * Z, state(r), Z * sizeof(T));
  }

  // Counts the step; a dream that ends leaves its place to the last. An end that is NaN ends nothing, and makes the return
  // NaN: a controller must not win by never ending.
  void finish(int64_t r) {
    const int64_t row = n(r), t = p_.lengths[row]++;
    const T end = p_.done >= 0 ? head(r, p_.done) : T(-1);
    const bool done = end > 0;
    T& sum = ptr<T>(p_.returns)[row];
    sum += p_.reward >= 0 ? head(r, p_.reward) : T(1);
    if (end != end) sum = end;
    if (p_.ended) p_.ended[t * p_.N + row] = done;
    if (!done && t + 1 < p_.steps) return;
    --rows_;
    s_.rows[r] = s_.rows[rows_];
    if (r < rows_) std::memcpy(s_.h + r * ldh_, s_.h + rows_ * ldh_, p_.H * sizeof(O));
  }

  T head(int64_t r, int64_t column) const {
    return ptr<T>(p_.out_bias)[column] + dot(p_.H, w_.extra + column * p_.H, hidden(r));
  }

  const MdnRnnImagine& p_;
  const Weights<T, O>& w_;
  T* const states_;
  Scratch<T, O>& s_;
  const int64_t ldh_;
  int64_t rows_ = 0;
};

template <typename T, typename O>
void imagine(const MdnRnnImagine& p) {
  if (p.N == 0) return;
  const int64_t width = p.Z + 2 * p.H;
  const bool amx = use_amx<O>();
  Weights<T, O> weights(p);
  const double work = static_cast<double>(p.N) * p.steps * weights.packings.weights() / kColumnWork;
  const int most = max_threads(), threads = static_cast<int>(p.N < most ? p.N : work < 2 ? 1 : most);
  T* states;
  int64_t* ring;
  const Arena arena([&](Arena& a) {
    weights.place(a, p);
    states = a.take_zeros<T>(p.N * width);
    ring = a.take<int64_t>(p.N);
  });
  weights.pack(p, threads);
  std::memset(p.lengths, 0, p.N * sizeof(int64_t));
  std::memset(p.returns, 0, p.N * sizeof(T));
  copy_rows(p.N, p.Z, ptr<T>(p.z0), p.Z, states, width);
  Waiting waiting(ring, p.N, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch<T, O> scratch(p);
    const AmxTiles tiles(amx, kDreams);
    Dreamer<T, O>(p, weights, states, scratch).run(waiting);
  }
}

}  // namespace

void mdn_rnn_imagine_kernel(const MdnRnnImagine& p) {
  with_types(p, [&](auto t, auto o) { imagine<decltype(t), decltype(o)>(p); });
}

}  // namespace fastwm::FASTWM_ISA
