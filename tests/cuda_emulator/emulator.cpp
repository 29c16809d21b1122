#include "cuda_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace emulated {

Indices now;

namespace {

constexpr size_t kStack = 256 << 10;

struct Fiber {
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  void* sp = nullptr;
  bool done = false;
};

struct Barrier {
  unsigned alive = 0, arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  std::vector<unsigned char> slots;
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<unsigned char> shared_memory;
Barrier block_barrier;
void* scheduler = nullptr;
size_t current = 0;
bool progress = false;
void (*thread_main)(void*);
void* kernel_state;

// Saves the callee-saved registers and the stack pointer, and goes on where `to` left off.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.local emulated_switch
.type emulated_switch, @function
emulated_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

void open(Barrier& b) {
  b.arrived = 0;
  ++b.generation;
  progress = true;
}

void wait(Barrier& b) {
  const unsigned generation = b.generation;
  if (++b.arrived == b.alive) return open(b);
  while (b.generation == generation) emulated_switch(&fibers[current].sp, scheduler);
}

void leave(Barrier& b) {
  if (--b.alive > 0 && b.arrived == b.alive) open(b);
}

void entry() {
  for (;;) {
    thread_main(kernel_state);
    fibers[current].done = true;
    progress = true;
    leave(warps[current / 32].barrier);
    leave(block_barrier);
    emulated_switch(&fibers[current].sp, scheduler);
  }
}

void prepare(Fiber& fiber) {
  fiber.done = false;
  if (fiber.sp) return;  // entry() loops: a fiber that has ended begins anew where it stopped
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStack) & ~uintptr_t{15};
  auto* sp = reinterpret_cast<void**>(top) - 2;
  *sp = reinterpret_cast<void*>(&entry);
  fiber.sp = sp - 6;
}

void run_block(size_t threads) {
  block_barrier = {static_cast<unsigned>(threads), 0, 0};
  for (size_t w = 0; w < warps.size(); ++w)
    warps[w].barrier = {static_cast<unsigned>(std::min<size_t>(32, threads - 32 * w)), 0, 0};
  for (size_t t = 0; t < threads; ++t) prepare(fibers[t]);
  for (size_t alive = threads; alive > 0;) {
    progress = false;
    for (current = 0; current < threads; ++current) {
      if (fibers[current].done) continue;
      const dim3 d = now.block_dim;
      const auto t = static_cast<unsigned>(current);
      now.thread = {t % d.x, t / d.x % d.y, t / (d.x * d.y)};
      emulated_switch(&scheduler, fibers[current].sp);
      alive -= fibers[current].done;
    }
    if (!progress) {
      std::fprintf(stderr, "emulated CUDA: the threads of a block wait for each other\n");
      std::abort();
    }
  }
}

}  // namespace

void syncthreads() { wait(block_barrier); }
void syncwarp() { wait(warps[current / 32].barrier); }

const unsigned char* exchange(const void* mine, size_t size) {
  Warp& warp = warps[current / 32];
  if (warp.slots.size() < 32 * size) warp.slots.resize(32 * size);
  std::memcpy(warp.slots.data() + current % 32 * size, mine, size);
  wait(warp.barrier);
  return warp.slots.data();
}

void release() { syncwarp(); }

unsigned char* dynamic_shared() { return shared_memory.data(); }

void run(dim3 grid, dim3 block, size_t shared, void (*thread)(void*), void* kernel) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0;
  if (empty || threads > 1024 || shared > (227 << 10) || grid.y > 65535 || grid.z > 65535) {
    std::fprintf(stderr, "emulated CUDA: no device launches a grid of %u x %u x %u blocks of %zu threads, %zu bytes\n",
                 grid.x, grid.y, grid.z, threads, shared);
    std::abort();
  }
  if (fibers.size() < threads) fibers.resize(threads);
  warps.resize((threads + 31) / 32);
  shared_memory.assign(shared + 16, 0xff);  // NaN
  thread_main = thread;
  kernel_state = kernel;
  now.block_dim = block;
  now.grid_dim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        now.block = {x, y, z};
        run_block(threads);
      }
}

}  // namespace emulated
