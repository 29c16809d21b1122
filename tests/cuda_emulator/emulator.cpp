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

struct Block {
  dim3 index;
  size_t first_fiber = 0, threads = 0, alive = 0, first_shared = 0;
  Barrier barrier;
  Barrier* meeting = nullptr;  // of all blocks that were launched together in this row
  std::vector<Warp> warps;
};

std::vector<Fiber> fibers;
std::vector<unsigned char> shared_memory;  // of all blocks that take turns
size_t shared_stride = 0;
Block* block = nullptr;  // of the thread that runs
void* scheduler = nullptr;
size_t current = 0;  // in the block
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
  while (b.generation == generation) emulated_switch(&fibers[block->first_fiber + current].sp, scheduler);
}

void leave(Barrier& b) {
  if (--b.alive > 0 && b.arrived == b.alive) open(b);
}

void entry() {
  for (;;) {
    thread_main(kernel_state);
    Fiber& fiber = fibers[block->first_fiber + current];
    fiber.done = true;
    progress = true;
    leave(block->warps[current / 32].barrier);
    leave(block->barrier);
    if (block->meeting) leave(*block->meeting);
    emulated_switch(&fiber.sp, scheduler);
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

void begin(Block& b, dim3 index, size_t threads, size_t first_fiber, Barrier* meeting) {
  b.index = index, b.threads = b.alive = threads, b.first_fiber = first_fiber, b.meeting = meeting;
  b.barrier = {static_cast<unsigned>(threads), 0, 0};
  b.warps.resize((threads + 31) / 32);
  for (size_t w = 0; w < b.warps.size(); ++w)
    b.warps[w].barrier = {static_cast<unsigned>(std::min<size_t>(32, threads - 32 * w)), 0, 0};
  if (fibers.size() < first_fiber + threads) fibers.resize(first_fiber + threads);
  for (size_t t = 0; t < threads; ++t) prepare(fibers[first_fiber + t]);
}

// Runs the threads of a block until each has ended or waits for other blocks; whether anything happened.
bool run_block(Block& b) {
  block = &b;
  now.block = b.index;
  bool any = false;
  do {
    progress = false;
    for (current = 0; current < b.threads; ++current) {
      Fiber& fiber = fibers[b.first_fiber + current];
      if (fiber.done) continue;
      const dim3 d = now.block_dim;
      const auto t = static_cast<unsigned>(current);
      now.thread = {t % d.x, t / d.x % d.y, t / (d.x * d.y)};
      emulated_switch(&scheduler, fiber.sp);
      b.alive -= fiber.done;
    }
    any = any || progress;
  } while (b.alive > 0 && progress);
  return any;
}

[[noreturn]] void stuck() {
  std::fprintf(stderr, "emulated CUDA: the threads of a launch wait for each other\n");
  std::abort();
}

}  // namespace

void syncthreads() { wait(block->barrier); }
void syncwarp() { wait(block->warps[current / 32].barrier); }
void meet() { wait(*block->meeting); }

const unsigned char* exchange(const void* mine, size_t size) {
  Warp& warp = block->warps[current / 32];
  if (warp.slots.size() < 32 * size) warp.slots.resize(32 * size);
  std::memcpy(warp.slots.data() + current % 32 * size, mine, size);
  wait(warp.barrier);
  return warp.slots.data();
}

void release() { syncwarp(); }

unsigned char* dynamic_shared() { return shared_memory.data() + block->first_shared; }

void* shared_of(int rank, const void* mine) {
  const auto at = reinterpret_cast<uintptr_t>(mine) + (rank - static_cast<int64_t>(block->index.x)) * shared_stride;
  return reinterpret_cast<void*>(at);
}

void run(dim3 grid, dim3 shape, size_t shared, bool together, void (*thread)(void*), void* kernel) {
  const size_t threads = size_t{shape.x} * shape.y * shape.z;
  const bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0;
  if (empty || threads > 1024 || shared > (227 << 10) || grid.y > 65535 || grid.z > 65535) {
    std::fprintf(stderr, "emulated CUDA: no device launches a grid of %u x %u x %u blocks of %zu threads, %zu bytes\n",
                 grid.x, grid.y, grid.z, threads, shared);
    std::abort();
  }
  shared_stride = (shared + 31) / 16 * 16;
  shared_memory.assign(shared_stride * (together ? size_t{grid.x} * grid.y : 1), 0xff);  // NaN
  thread_main = thread;
  kernel_state = kernel;
  now.block_dim = shape;
  now.grid_dim = grid;
  if (!together) {
    Block alone;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          begin(alone, {x, y, z}, threads, 0, nullptr);
          run_block(alone);
          if (alone.alive > 0) stuck();
        }
    return;
  }
  std::vector<Barrier> meetings(grid.y, Barrier{static_cast<unsigned>(grid.x * threads), 0, 0});
  std::vector<Block> blocks(size_t{grid.x} * grid.y);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const dim3 index(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x), 0);
    begin(blocks[i], index, threads, i * threads, &meetings[index.y]);
    blocks[i].first_shared = i * shared_stride;
  }
  for (bool alive = true; alive;) {
    bool any = false;
    alive = false;
    for (Block& b : blocks) {
      if (b.alive > 0) any |= run_block(b);
      alive |= b.alive > 0;
    }
    if (alive && !any) stuck();
  }
}

}  // namespace emulated
