// rssm_observe of DreamerV3's size1m by one cluster for 16 rows, whose registers hold all the weights. Block g has block g
// of the recurrent core, and with it a share of deter; after deter it has two of the rows. A step, with what the blocks
// then send each other:
//   hidden <- own deter, silu(norm(embeds)):  the sums of its squares, to all;
//   gates <- silu(norm(hidden)), new deter, what that adds to the posterior layer and the next embedding:  partial sums, to
//   the rows' owners;
//   logits <- silu(norm(posterior layer)), sample, next embeddings:  silu(norm(embeds)), to all.
#pragma once

#include "cluster.cuh"
#include "fast_math.cuh"
#include "rssm_observe.cuh"

namespace fastwm::cuda {
namespace {

class ClusterSteps {
  static constexpr int J = 64, U = 64, S = 32, C = 4, Z = S * C, D = kClusterBlocks * J;
  static constexpr int kOwnRows = kTileRows / kClusterBlocks;  // that a block has after deter
  static_assert(kOwnRows == 2 && kOwnRows * Z == kThreads);
  static constexpr int kPad = 16;  // bfloat16s that keep rows on different banks
  static constexpr int kShares = kClusterBlocks * kWarps, kSharesStride = kShares + 16;
  using Act = Activation<true>;

 public:
  struct Shared {
    __align__(16) bf16 embeds[kTileRows][2 * U + kPad];  // silu(norm) of the embeddings of deter and of the sample
    bf16 deter[kTileRows][J + kPad], act[kTileRows][J + kPad], zeros[J];
    bf16 post[kOwnRows][U + kPad], stoch[kOwnRows][Z + kPad];
    __align__(16) float shares[kTileRows][kSharesStride];  // of the hidden layer's squares' sums, a warp's each
    float partial[kTileRows][2 * U + 8];                   // of the posterior layer and of the next embedding of deter
    float logits[kOwnRows][Z], embed[kOwnRows][U];
  };

  static bool fits(const RssmObserve& p) {
    const RssmSizes& n = p.n;
    return n.G == kClusterBlocks && n.J() == J && n.U == U && n.S == S && n.C == C && n.B * 3 * D <= INT32_MAX &&
           (p.compact || !p.gru.gates) &&
           fits_pieces(
               {p.gru.hidden_in, p.gru.h, p.post_in, p.logits, p.gru.embeds, p.gru.hidden, p.post, p.gru.w.b_gates});
  }

  __device__ ClusterSteps(const Observe<float, bf16>& a, Shared& shared)
      : a_(a), s_(shared), g_(static_cast<int>(blockIdx.x)), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32),
        row_(lane_ / 4), column_(8 * warp_ + lane_ % 4 * 2), T_(a.p.n.T), B_(a.p.n.B),
        eps_(static_cast<float>(a.p.gru.eps)), update_bias_(static_cast<float>(a.p.gru.update_bias)) {
    read(own_, a.own, g_, warp_, 0);
    read(embed_deter_, a.embeds, g_, warp_, 0);
    read(embed_stoch_, a.embeds, g_, warp_, U);
#pragma unroll
    for (int i = 0; i < 3; ++i) read(gates_[i], a.gates[i], g_, warp_, 0);
    read(post_, a.post, 0, warp_, g_ * J);
    read(deter_, a.deter, 0, warp_, g_ * J);
#pragma unroll
    for (int i = 0; i < 2; ++i) read(logits_[i], a.logits, 0, 2 * warp_ + i, 0);
#pragma unroll
    for (int i = 0; i < 2; ++i) read(stoch_[i], a.stoch, 0, warp_, i * Z / 2);
#pragma unroll
    for (int i = 0; i < 3; ++i) gate_bias_[i] = pair(a.p.gru.w.b_gates, 3 * g_ * J + i * J + column_);
    hidden_scale_ = pair(a.p.gru.w.n_hidden, g_ * J + column_);
    for (int i = threadIdx.x; i < J; i += kThreads) s_.zeros[i] = bf16{};
  }

  __device__ void run(int64_t tile) {
    const Rows rows(tile, B_);
    start(rows);
    for (int64_t t = 0; t < T_; ++t) {
      hidden(rows, t);
      gates(rows, t);
      own_rows(rows, t);
    }
    Cluster::wait();  // nobody reads this block's memory any more
  }

 private:
  // ---- deter and what it is made of: this thread's elements are in rows row_ and row_ + 8, columns column_ and + 1 ----

  // Step -1: the embeddings that step 0 reads.
  __device__ void start(const Rows& rows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 h = pair(a_.p.gru.h0, place(rows, half));
      before_[2 * half] = h.x, before_[2 * half + 1] = h.y;
      keep_pair(s_.deter[row_ + 8 * half] + column_, h.x, h.y);
    }
    fetch(rows, 0);
    __syncthreads();
    leave_partial_sums();
    own_rows(rows, -1);
  }

  // Reads the inputs of step t that wait for nobody.
  __device__ void fetch(const Rows& rows, int64_t t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 in = pair(a_.read(a_.p.gru.hidden_in) + t * B_ * D, place(rows, half));
      input_[2 * half] = in.x, input_[2 * half + 1] = in.y;
      first_[half] = a_.first(t, row(rows, half));
    }
  }

  __device__ void hidden(const Rows& rows, int64_t t) {
    float own[4] = {input_[0], input_[1], input_[2], input_[3]}, deter[4] = {}, stoch[4] = {};
    multiply(own, first_[0] ? s_.zeros : s_.deter[row_], first_[1] ? s_.zeros : s_.deter[row_ + 8], own_);
    Cluster::wait();  // for the embeddings
    multiply(deter, s_.embeds[row_], s_.embeds[row_ + 8], embed_deter_);
    multiply(stoch, s_.embeds[row_] + U, s_.embeds[row_ + 8] + U, embed_stoch_);
#pragma unroll
    for (int i = 0; i < 4; ++i) hidden_[i] = own[i] + (deter[i] + stoch[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float x = hidden_[2 * half], y = hidden_[2 * half + 1];
      const float share = group_sum<4>(x * x + y * y);
      float* to = &s_.shares[row_ + 8 * half][g_ * kWarps + warp_];
#pragma unroll
      for (int rank = 0; rank < kClusterBlocks; rank += 4) Cluster::write(rank + lane_ % 4, to, __float_as_uint(share));
    }
    Cluster::arrive();
    if (!a_.kept) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (rows.has(row_ + 8 * half))
        write_pair(a_.hidden_at(t) + place(rows, half), hidden_[2 * half], hidden_[2 * half + 1]);
  }

  __device__ void gates(const Rows& rows, int64_t t) {
    Cluster::wait();  // for the squares' sums
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kShares / 16; ++i) {
        const float4 part = *reinterpret_cast<const float4*>(s_.shares[row_ + 8 * half] + (4 * i + lane_ % 4) * 4);
        sum += (part.x + part.y) + (part.z + part.w);
      }
      const float inverse = inverse_rms(group_sum<4>(sum) / D, eps_);
      keep_pair(s_.act[row_ + 8 * half] + column_, Act::silu(hidden_[2 * half] * inverse * hidden_scale_.x),
                Act::silu(hidden_[2 * half + 1] * inverse * hidden_scale_.y));
    }
    __syncthreads();
    float sums[3][4];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      sums[i][0] = sums[i][2] = gate_bias_[i].x, sums[i][1] = sums[i][3] = gate_bias_[i].y;
      multiply(sums[i], s_.act[row_], s_.act[row_ + 8], gates_[i]);
    }
    float reset[4], update[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const BlockGruGates<float> y = block_gru_gates<Act>(sums[0][i], sums[1][i], sums[2][i] + update_bias_);
      reset[i] = y.reset, update[i] = y.update;
      before_[i] = block_gru_carry(y.update, y.cand, first_[i / 2] ? 0.0f : before_[i]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      keep_pair(s_.deter[row_ + 8 * half] + column_, before_[2 * half], before_[2 * half + 1]);
    __syncthreads();
    leave_partial_sums();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!rows.has(row_ + 8 * half)) continue;
      const int i = 2 * half;
      write_pair(static_cast<float*>(a_.p.gru.h) + t * B_ * D + place(rows, half), before_[i], before_[i + 1]);
      if (!a_.kept) continue;
      bf16* kept = static_cast<bf16*>(a_.p.gru.gates) + t * B_ * 3 * D;
      kept += row(rows, half) * 3 * D + 3 * g_ * J + column_;
      keep_pair(kept, reset[i], reset[i + 1]);
      keep_pair(kept + J, sums[1][i], sums[1][i + 1]);
      keep_pair(kept + 2 * J, update[i], update[i + 1]);
    }
    if (t + 1 < T_) fetch(rows, t + 1);
  }

  // This block's share of deter's products, and on to the other blocks.
  __device__ void leave_partial_sums() {
    float post[4] = {}, deter[4] = {};
    multiply(post, s_.deter[row_], s_.deter[row_ + 8], post_);
    multiply(deter, s_.deter[row_], s_.deter[row_ + 8], deter_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      write_pair(s_.partial[row_ + 8 * half] + column_, post[2 * half], post[2 * half + 1]);
      write_pair(s_.partial[row_ + 8 * half] + U + column_, deter[2 * half], deter[2 * half + 1]);
    }
    Cluster::arrive();
  }

  // ---- after deter: this block's own rows; in products, copies of them take the other rows' places ----

  // The posterior of step t (of -1 there is none), and the embeddings that step t + 1 reads.
  __device__ void own_rows(const Rows& rows, int64_t t) {
    const bool last = t + 1 == T_;
    const int mine = warp_ / 2, u = lane_ * 2;  // of the layers' norms: a warp has a row of one
    const bool embed = warp_ % 2, works = warp_ < 2 * kOwnRows && (embed ? !last : t >= 0);
    const int read_row = row_at(rows, mine);
    float2 added{}, scale{};
    if (works) {
      added = embed ? pair(a_.p.gru.w.b_carry, u) : pair(a_.read(a_.p.post_in) + t * B_ * U, read_row * U + u);
      scale = embed ? pair(a_.p.gru.w.n_carry, u) : pair(a_.p.w.n_post, u);
    }
    const bool cut = works && embed && a_.first(t + 1, read_row);
    Cluster::wait();  // for the partial sums
    if (works) {
      const auto* from = reinterpret_cast<const float2*>(s_.partial[g_ * kOwnRows + mine] + embed * U + u);
      float2 parts[kClusterBlocks], sum{};
#pragma unroll
      for (int rank = 0; rank < kClusterBlocks; ++rank) parts[rank] = Cluster::read(rank, from);
#pragma unroll
      for (int rank = 0; rank < kClusterBlocks; ++rank) sum.x += parts[rank].x, sum.y += parts[rank].y;
      sum.x = cut ? added.x : sum.x + added.x, sum.y = cut ? added.y : sum.y + added.y;
      if (a_.kept && rows.has(g_ * kOwnRows + mine))
        write_pair(embed ? a_.embeds_at(t + 1) + (read_row * 2 * U + u) : a_.post_at(t) + (read_row * U + u), sum.x,
                   sum.y);
      const uint32_t act = norm_and_activate(sum, scale);
      if (embed) send(mine, u, act);
      else *reinterpret_cast<uint32_t*>(s_.post[mine] + u) = act;
    }
    if (t < 0) read_start(rows);
    else sample(rows, t);
    if (!last) embed_sample(rows, t);
    Cluster::arrive();
  }

  // The sample before the first step, which is data and need not be one-hot.
  __device__ void read_start(const Rows& rows) {
    for (int i = threadIdx.x; i < kOwnRows * Z; i += kThreads)
      narrow(a_.read(a_.p.stoch0)[row_at(rows, i / Z) * Z + i % Z], s_.stoch[i / Z][i % Z]);
  }

  __device__ void sample(const Rows& rows, int64_t t) {
    const float draw = a_.read(a_.p.uniform)[t * B_ * S + (row_at(rows, threadIdx.x / Z) * S + threadIdx.x % Z / C)];
    __syncthreads();  // the posterior layer is there
    const int mine = row_ % kOwnRows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sums[4] = {};
      multiply(sums, s_.post[mine], s_.post[mine], logits_[i]);
      const int z = 16 * warp_ + 8 * i + lane_ % 4 * 2;
      if (row_ >= kOwnRows) continue;
      const float2 bias = pair(a_.p.w.b_logits, z);
      write_pair(s_.logits[row_] + z, sums[0] + bias.x, sums[1] + bias.y);
      if (rows.has(g_ * kOwnRows + row_))
        write_pair(static_cast<float*>(a_.p.logits) + t * B_ * Z + (row_at(rows, row_) * Z + z), sums[0] + bias.x,
                   sums[1] + bias.y);
    }
    __syncthreads();
    const int own = threadIdx.x / Z, s = threadIdx.x % Z / C, c = threadIdx.x % C;  // a thread for every class
    const Drawn<float> drawn = draw_class<C>(s_.logits[own] + s * C, C, static_cast<float>(a_.p.w.unimix), draw);
    narrow(drawn.at(c), s_.stoch[own][s * C + c]);
    if (!rows.has(g_ * kOwnRows + own)) return;
    const int categorical = row_at(rows, own) * S + s;
    if (c == 0) a_.p.index[t * B_ * S + categorical] = drawn.index;
    static_cast<float*>(a_.p.stoch)[t * B_ * Z + (categorical * C + c)] = drawn.at(c);
  }

  __device__ void embed_sample(const Rows& rows, int64_t t) {
    __syncthreads();  // the sample is there
    float sums[2][4] = {};
    const int mine = row_ % kOwnRows;
#pragma unroll
    for (int i = 0; i < 2; ++i) multiply(sums[i], s_.stoch[mine] + i * Z / 2, s_.stoch[mine] + i * Z / 2, stoch_[i]);
    if (row_ < kOwnRows) {
      const float2 bias = pair(a_.p.w.b_stoch, column_);
      const bool cut = a_.first(t + 1, row_at(rows, row_));
      write_pair(s_.embed[row_] + column_, cut ? bias.x : sums[0][0] + sums[1][0] + bias.x,
                 cut ? bias.y : sums[0][1] + sums[1][1] + bias.y);
    }
    __syncthreads();
    if (warp_ >= kOwnRows) return;
    const int u = lane_ * 2;
    const float2 sum = *reinterpret_cast<const float2*>(s_.embed[warp_] + u);
    if (a_.kept && rows.has(g_ * kOwnRows + warp_))
      write_pair(a_.embeds_at(t + 1) + (row_at(rows, warp_) * 2 * U + U + u), sum.x, sum.y);
    send(warp_, U + u, norm_and_activate(sum, pair(a_.p.w.n_stoch, u)));
  }

  // Two elements of silu(norm) of a row that the warp has, as bfloat16.
  __device__ uint32_t norm_and_activate(float2 x, float2 scale) const {
    const float inverse = inverse_rms(group_sum<32>(x.x * x.x + x.y * x.y) / U, eps_);
    return bf16_pair(Act::silu(x.x * inverse * scale.x), Act::silu(x.y * inverse * scale.y));
  }

  // Two elements of the embeddings of own row `mine`, to all blocks.
  __device__ void send(int mine, int column, uint32_t two) const {
#pragma unroll
    for (int rank = 0; rank < kClusterBlocks; ++rank)
      Cluster::write(rank, s_.embeds[g_ * kOwnRows + mine] + column, two);
  }

  // ---- helpers ----

  // A warp's 8 columns of a packed weight, from depth k on.
  template <int kSteps>
  __device__ void read(uint2 (&b)[kSteps], const PackedWeight<bf16>& w, int g, int columns, int k) const {
    const bf16* tile = w.tile(g, columns / 2) + k * kTileColumns + lane_ * 8 + columns % 2 * 4;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) b[i] = *reinterpret_cast<const uint2*>(tile + i * 16 * kTileColumns);
  }

  // sums += x W, of which this thread reads two rows.
  template <int kSteps>
  __device__ void multiply(float (&sums)[4], const bf16* low, const bf16* high, const uint2 (&w)[kSteps]) const {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int k = 16 * i + lane_ % 4 * 4;
      const uint2 x = *reinterpret_cast<const uint2*>(low + k), y = *reinterpret_cast<const uint2*>(high + k);
      const uint32_t a[4] = {x.x, y.x, x.y, y.y};
      mma(sums, a, w[i]);
    }
  }

  __device__ int row(const Rows& rows, int half) const { return rows.at(row_ + 8 * half); }
  __device__ int row_at(const Rows& rows, int mine) const { return rows.at(g_ * kOwnRows + mine); }
  // The place of this thread's elements in a step's [B, D].
  __device__ int place(const Rows& rows, int half) const { return row(rows, half) * D + g_ * J + column_; }
  __device__ static float2 pair(const void* from, int at) {
    return *reinterpret_cast<const float2*>(static_cast<const float*>(from) + at);
  }
  __device__ static void write_pair(float* to, float x, float y) { *reinterpret_cast<float2*>(to) = make_float2(x, y); }
  __device__ static void keep_pair(bf16* to, float x, float y) { *reinterpret_cast<uint32_t*>(to) = bf16_pair(x, y); }

  const Observe<float, bf16>& a_;
  Shared& s_;
  const int g_, warp_, lane_, row_, column_;
  const int64_t T_, B_;
  const float eps_, update_bias_;
  uint2 own_[J / 16], embed_deter_[U / 16], embed_stoch_[U / 16], gates_[3][J / 16], post_[J / 16], deter_[J / 16];
  uint2 logits_[2][U / 16], stoch_[2][Z / 32];
  float2 gate_bias_[3], hidden_scale_;
  float before_[4], hidden_[4], input_[4];
  bool first_[2];
};

__global__ void __launch_bounds__(kThreads, 1) observe_by_cluster(Observe<float, bf16> a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char memory[];
  ClusterSteps steps(a, *reinterpret_cast<ClusterSteps::Shared*>(memory));
  for (int64_t tile = blockIdx.y; tile < row_tiles(a.p.n.B); tile += gridDim.y) steps.run(tile);
#endif
}

}  // namespace
}  // namespace fastwm::cuda
