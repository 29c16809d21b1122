#include "fastwm/mdn_rnn_rollout.h"

#include "mdn_rnn_rows.h"
#include "rssm_plan.h"

namespace fastwm::FASTWM_ISA {
namespace {

constexpr int64_t kDreams = 64;  // rows that a thread takes at a time: the weights are read once for all of them
constexpr int64_t kStride = 32;  // steps before it gives them back and takes others

// Dreams that wait for a thread, in a ring: each thread takes some, moves them on by kStride steps, and puts back
// those that live. So the tiles stay full as dreams end, and no thread is left with the long ones.
class Waiting {
 public:
  Waiting(int64_t* ring, int64_t count, int threads)
      : ring_(ring), size_(count), waiting_(count), alive_(count), threads_(threads) {
    for (int64_t n = 0; n < count; ++n) ring_[n] = n;
  }

  // A thread's share of those that wait; none are left to anyone where it returns 0.
  int64_t take(int64_t* rows) {
    for (int spins = 0;; ++spins) {
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
      if (spins > 256) sched_yield();
    }
  }

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
};

// T is what sums, state and samples are in, O what products multiply.
template <typename T, typename O>
struct Weights {
  Packed<O> ih[4], hh[4];  // by gate: i, f, g, o
  Packed<O> out;           // 3K matrices [H, Z]: logits, means and log-stds of each component
  T* gate_bias;            // [4, H], the constant of the forget gate added
  T *out_bias, *extra;     // [3K, Z], [extra, H]

  explicit Weights(const MdnRnnRollout& p) : out{3 * p.K, p.H, p.Z} {
    for (int i = 0; i < 4; ++i) ih[i] = {1, p.I, p.H}, hh[i] = {1, p.H, p.H};
  }
  int64_t bytes(const MdnRnnRollout& p) const {
    int64_t sum = Arena::bytes<O>(out.size());
    for (int i = 0; i < 4; ++i) sum += Arena::bytes<O>(ih[i].size()) + Arena::bytes<O>(hh[i].size());
    return sum + Arena::bytes<T>(4 * p.H) + Arena::bytes<T>(3 * p.K * p.Z) + Arena::bytes<T>(p.extra() * p.H);
  }
  int64_t count() const { return 4 * (ih[0].K + hh[0].K) * hh[0].N + out.blocks * out.K * out.N; }

  void pack(const MdnRnnRollout& p, Arena& arena, int threads) {
    Packing<O> items[9];
    gate_bias = arena.take<T>(4 * p.H);
    for (int i = 0; i < 4; ++i) {
      const int at = p.ijfo && (i == 1 || i == 2) ? 3 - i : i;  // where the weights hold this gate
      const auto gate = [&](const Weight& w) {
        return Weight{ptr<T>(w.data) + at * p.H * w.sn, 0, w.sk, w.sn};
      };
      ih[i].data = arena.take<O>(ih[i].size());
      hh[i].data = arena.take<O>(hh[i].size());
      items[2 * i] = {&ih[i], gate(p.ih)};
      items[2 * i + 1] = {&hh[i], gate(p.hh)};
      const T constant = i == 1 ? static_cast<T>(p.forget_bias) : 0;
      for (int64_t j = 0; j < p.H; ++j) gate_bias[i * p.H + j] = ptr<T>(p.bias)[at * p.H + j] + constant;
    }
    out.data = arena.take<O>(out.size());
    const T* mixtures = ptr<T>(p.out.data) + p.extra() * p.out.sn;
    items[8] = {&out, {mixtures, p.out.sn, p.out.sk, 3 * p.K * p.out.sn}};
    pack_all(items, 9, threads);
    out_bias = arena.take<T>(3 * p.K * p.Z);
    for (int64_t g = 0; g < 3 * p.K; ++g)
      for (int64_t z = 0; z < p.Z; ++z) out_bias[g * p.Z + z] = ptr<T>(p.out_bias)[p.extra() + z * 3 * p.K + g];
    extra = arena.take<T>(p.extra() * p.H);
    pack_rows({p.out.data, 0, p.out.sn, p.out.sk}, 0, p.extra(), p.H, extra);
  }
};

// The rows a thread has in hand, one behind the other.
template <typename T, typename O>
struct Scratch {
  static constexpr int64_t kGateWidth = 4 * kPanelOf<O>;
  Arena arena;
  O *x, *h, *next_h;         // operands [R, I] [R, H] [R, H]
  T *gates, *out, *mixture;  // [R, 4, panel] [R, 3K, Z] [3, Z]
  T* action;                 // [A]
  float *uniform, *normal;
  int64_t rows[kDreams];

  explicit Scratch(const MdnRnnRollout& p)
      : arena(8 * (kDreams * (p.I + 2 * p.H + kGateWidth + 3 * p.K * p.Z) + 5 * p.Z + p.A) + 8192) {
    x = arena.take<O>(kDreams * p.I);
    h = arena.take<O>(kDreams * p.H);
    next_h = arena.take<O>(kDreams * p.H);
    gates = arena.take<T>(kDreams * kGateWidth);
    out = arena.take<T>(kDreams * 3 * p.K * p.Z);
    mixture = arena.take<T>(3 * p.Z);
    action = arena.take<T>(p.A);
    uniform = arena.take<float>(p.Z + 3);
    normal = arena.take<float>(p.Z + 3);
  }
};

// The dreams of one thread.
template <typename T, typename O>
class Dreamer {
 public:
  // states [N, Z + 2H]: z, c and h of every dream
  Dreamer(const MdnRnnRollout& p, const Weights<T, O>& w, T* states, Scratch<T, O>& s)
      : p_(p), w_(w), states_(states), s_(s) {}

  void run(Waiting& waiting) {
    while ((rows_ = waiting.take(s_.rows)) > 0) {
      const int64_t taken = rows_;
      for (int64_t r = 0; r < rows_; ++r) convert(p_.H, hidden(r), s_.h + r * p_.H);
      for (int64_t i = 0; i < kStride && rows_ > 0; ++i) step();
      waiting.put_back(s_.rows, rows_, taken - rows_);
    }
  }

 private:
  int64_t n(int64_t r) const { return s_.rows[r]; }
  T* state(int64_t r) const { return states_ + n(r) * (p_.Z + 2 * p_.H); }
  T* cell(int64_t r) const { return state(r) + p_.Z; }
  T* hidden(int64_t r) const { return cell(r) + p_.H; }
  // AMX takes whole tiles; what is computed of the rows behind the last is not used.
  int64_t product_rows() const { return sizeof(O) == 2 ? (rows_ + 15) / 16 * 16 : rows_; }

  // Not inlined: among so much else the inner loop runs out of registers, a fifth of its speed.
  __attribute__((noinline)) static void product(int64_t M, const O* a, int64_t lda, const Packed<O>& w, int64_t task,
                                                T* c, int64_t ldc) {
    multiply(M, a, lda, w, task, c, ldc);
  }

  void step() {
    for (int64_t r = 0; r < rows_; ++r) act(r);
    lstm();
    outputs();
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
    if (p_.has_restart()) narrow(t == 0 ? T(1) : T(0), x[Z + p_.A]);
    if (p_.action) std::memcpy(ptr<T>(p_.action) + (t * p_.N + n(r)) * p_.A, s_.action, p_.A * sizeof(T));
  }

  void lstm() const {
    constexpr int64_t kWidth = kPanelOf<O>, kRow = Scratch<T, O>::kGateWidth;
    const int64_t H = p_.H, M = product_rows();
    for (int64_t panel = 0; panel < w_.hh[0].panels(); ++panel) {
      const int64_t j = panel * kWidth, width = w_.hh[0].width(panel);
      for (int i = 0; i < 4; ++i) {
        T* gate = s_.gates + i * kWidth;
        copy_rows(M, width, w_.gate_bias + i * H + j, 0, gate, kRow);
        product(M, s_.x, p_.I, w_.ih[i], panel, gate, kRow);
        product(M, s_.h, H, w_.hh[i], panel, gate, kRow);
      }
      for (int64_t r = 0; r < rows_; ++r) {
        const T* gate = s_.gates + r * kRow;
        lstm_row(width, gate, gate + kWidth, gate + 2 * kWidth, gate + 3 * kWidth, cell(r) + j, hidden(r) + j,
                 s_.next_h + r * H + j);
      }
    }
    std::swap(s_.h, s_.next_h);
  }

  void outputs() const {
    const Packed<O>& w = w_.out;
    const int64_t width = w.blocks * w.N, M = product_rows();
    for (int64_t task = 0; task < w.tasks(); ++task) {
      const int64_t panel = task % w.panels(), column = task / w.panels() * w.N + panel * kPanelOf<O>;
      copy_rows(M, w.width(panel), w_.out_bias + column, 0, s_.out + column, width);
      product(M, s_.h, p_.H, w, task, s_.out + column, width);
    }
  }

  void sample(int64_t r) const {
    const int64_t Z = p_.Z, t = p_.lengths[n(r)], blocks = (Z + 3) / 4;
    const uint64_t seed = p_.seed_offset[2 * n(r)], offset = p_.seed_offset[2 * n(r) + 1] + static_cast<uint64_t>(t);
    draw_row<PhiloxKind::uniform>(blocks, seed, offset, 0, s_.uniform);
    draw_row<PhiloxKind::normal>(blocks, seed, offset, blocks, s_.normal);
    mixture_row(Z, p_.K, s_.out + r * 3 * p_.K * Z, static_cast<T>(1 / p_.temperature),
                static_cast<T>(__builtin_sqrt(p_.temperature)), s_.uniform, s_.normal, s_.mixture, state(r));
    if (p_.z) std::memcpy(ptr<T>(p_.z) + (t * p_.N + n(r)) * Z, state(r), Z * sizeof(T));
  }

  // Counts the step; a dream that ends leaves its place to the last.
  void finish(int64_t r) {
    const int64_t row = n(r), t = p_.lengths[row]++;
    T& sum = ptr<T>(p_.returns)[row];
    sum += p_.reward >= 0 ? head(r, p_.reward) : T(1);
    const bool done = p_.done >= 0 && head(r, p_.done) > 0;
    if (p_.ended) p_.ended[t * p_.N + row] = done;
    if (!done && t + 1 < p_.steps) return;
    --rows_;
    s_.rows[r] = s_.rows[rows_];
    if (r < rows_) std::memcpy(s_.h + r * p_.H, s_.h + rows_ * p_.H, p_.H * sizeof(O));
  }

  T head(int64_t r, int64_t column) const {
    return ptr<T>(p_.out_bias)[column] + dot(p_.H, w_.extra + column * p_.H, hidden(r));
  }

  const MdnRnnRollout& p_;
  const Weights<T, O>& w_;
  T* const states_;
  Scratch<T, O>& s_;
  int64_t rows_ = 0;
};

template <typename T, typename O>
void rollout(const MdnRnnRollout& p) {
  if (p.N == 0) return;
  const int64_t width = p.Z + 2 * p.H;
  const bool amx = use_amx<O>();
  Weights<T, O> weights(p);
  const int64_t work = p.N * p.steps * weights.count() / kColumnWork;
  const int most = max_threads(), threads = static_cast<int>(p.N < most ? p.N : work < 2 ? 1 : most);
  Arena arena(weights.bytes(p) + Arena::bytes<T>(p.N * width) + Arena::bytes<int64_t>(p.N));
  weights.pack(p, arena, threads);
  T* states = arena.take<T>(p.N * width);
  std::memset(states, 0, p.N * width * sizeof(T));
  std::memset(p.lengths, 0, p.N * sizeof(int64_t));
  std::memset(p.returns, 0, p.N * sizeof(T));
  copy_rows(p.N, p.Z, ptr<T>(p.z0), p.Z, states, width);
  Waiting waiting(arena.take<int64_t>(p.N), p.N, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch<T, O> scratch(p);
    const AmxTiles tiles(amx, kDreams);
    Dreamer<T, O>(p, weights, states, scratch).run(waiting);
  }
}

}  // namespace

void mdn_rnn_rollout_kernel(const MdnRnnRollout& p) {
#if FASTWM_BF16
  if (p.bf16 && p.dtype == Dtype::f32 && has_bf16()) return rollout<float, bf16>(p);
#endif
  p.dtype == Dtype::f64 ? rollout<double, double>(p) : rollout<float, float>(p);
}

}  // namespace fastwm::FASTWM_ISA
