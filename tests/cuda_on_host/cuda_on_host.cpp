// The fibers behind cuda_on_host.h, and the few functions of torch that only a build with CUDA has.
#include "cuda_on_host.h"

#include <setjmp.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

Dimension threadIdx, blockIdx, blockDim, gridDim;

namespace regframe {
constexpr size_t kMemory = 1 << 20;
thread_local __attribute__((aligned(16))) unsigned char memory[kMemory];  // the shared memory that a launch asks for
}  // namespace regframe

namespace cuda_on_host {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 1 << 17;

enum class State { ready, in_warp, at_barrier, done };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf here;
  bool started;
  State state;
  Call call;
  unsigned mask;
  uint64_t value, result;
  int argument;
};

std::vector<std::unique_ptr<Fiber>> fibers;
unsigned current, count;  // the fiber that runs, and how many there are in the block
jmp_buf scheduler;
const std::function<void()>* body;
std::string failure;

Fiber& fiber(unsigned i) { return *fibers[i]; }

// setjmp is used to swap because swapcontext asks the kernel for the signal mask every time
__attribute__((noinline)) void yield() {
  if (_setjmp(fiber(current).here) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {  // again for every block
    (*body)();
    fiber(current).state = State::done;
    yield();
  }
}

// says what went wrong, and leaves this fiber where it is
void fail(const std::string& what) {
  failure = what + " (thread " + std::to_string(current) + " of block " + std::to_string(blockIdx.x) + ")";
  for (;;) yield();
}

__attribute__((noinline)) void prepare(Fiber& it) {
  it.started = false;
  getcontext(&it.start);
  it.start.uc_stack.ss_sp = it.stack.get();
  it.start.uc_stack.ss_size = kStack;
  it.start.uc_link = nullptr;
  makecontext(&it.start, fiber_main, 0);
}

__attribute__((noinline)) void resume(unsigned i) {
  current = i;
  threadIdx.x = i;
  if (_setjmp(scheduler) != 0) return;
  Fiber& to = fiber(i);
  if (to.started) _longjmp(to.here, 1);
  to.started = true;
  setcontext(&to.start);
}

uint64_t result_of(const Fiber& self, unsigned lane, unsigned first) {
  uint64_t out = 0;
  unsigned from = lane;
  switch (self.call) {
    case Call::shuffle:
      from = static_cast<unsigned>(self.argument) % kWarp;
      break;
    case Call::shuffle_xor:
      from = lane ^ static_cast<unsigned>(self.argument);
      break;
    case Call::ballot:
    case Call::match:
      for (unsigned other = 0; other < kWarp; ++other)
        if (self.mask >> other & 1)
          if (self.call == Call::ballot ? fiber(first + other).value != 0 : fiber(first + other).value == self.value)
            out |= uint64_t(1) << other;
      return out;
    case Call::sync:
      return 0;
  }
  if (!(self.mask >> from & 1)) fail("a shuffle reads a lane that does not take part");
  return fiber(first + from).value;
}

}  // namespace

uint64_t collective(Call call, unsigned mask, uint64_t value, int argument) {
  Fiber& self = fiber(current);
  const unsigned me = current, first = me / kWarp * kWarp;
  self.call = call;
  self.mask = mask;
  self.value = value;
  self.argument = argument;
  self.state = State::in_warp;
  if (!(mask >> (me - first) & 1)) fail("a lane is not in its own mask");
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (first + lane >= count) fail("a mask names a lane that is not there");
    const Fiber& other = fiber(first + lane);
    if (other.state == State::done) fail("a lane waits for one that has returned");
    if (other.state != State::in_warp || other.mask != mask || other.call != call) {
      yield();
      return self.result;
    }
  }
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (mask >> lane & 1) fiber(first + lane).result = result_of(fiber(first + lane), lane, first);
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (mask >> lane & 1) fiber(first + lane).state = State::ready;
  return self.result;
}

void barrier() {
  fiber(current).state = State::at_barrier;
  for (unsigned i = 0; i < count; ++i) {
    if (fiber(i).state == State::done) fail("a thread waits at a barrier for one that has returned");
    if (fiber(i).state != State::at_barrier) return yield();
  }
  for (unsigned i = 0; i < count; ++i) fiber(i).state = State::ready;
}

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

constexpr int64_t kUnasked = 48 * 1024 - 6 * 1024;  // some of 48 KiB is left for what a kernel has of fixed size
std::mutex one_at_a_time;
std::map<const void*, int64_t> granted;

bool grant(const void* kernel, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (bytes > setting("CUDA_ON_HOST_SHARED", 98304)) return false;
  granted[kernel] = bytes;
  return true;
}

void run(const void* kernel, int64_t blocks, int64_t threads, int64_t shared, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (blocks < 1 || blocks >= int64_t(1) << 31 || threads < 1 || threads > 1024 || threads % kWarp != 0 || shared < 0 ||
      shared > std::max<int64_t>(kUnasked, granted[kernel]) || shared > static_cast<int64_t>(regframe::kMemory))
    throw std::runtime_error("a launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
                             " threads and " + std::to_string(shared) + " bytes of shared memory is not possible");
  const int64_t seed = setting("CUDA_ON_HOST_SEED", 0);
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto shuffle = [&](auto& order) {
    if (seed == 1) std::reverse(order.begin(), order.end());
    if (seed > 1) std::shuffle(order.begin(), order.end(), random);
  };
  count = static_cast<unsigned>(threads);
  body = &thread;
  failure.clear();
  blockDim.x = count;
  gridDim.x = static_cast<unsigned>(blocks);
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < count; ++i) prepare(fiber(i));
  std::vector<unsigned> of_blocks(static_cast<size_t>(blocks)), of_warps(count / kWarp), of_lanes(kWarp);
  for (auto* order : {&of_blocks, &of_warps, &of_lanes}) std::iota(order->begin(), order->end(), 0u);
  shuffle(of_blocks);
  for (const unsigned block : of_blocks) {
    blockIdx.x = block;
    std::memset(regframe::memory, 0xa5, static_cast<size_t>(shared));  // nobody may count on what is there
    for (unsigned i = 0; i < count; ++i) fiber(i).state = State::ready;
    shuffle(of_warps);
    shuffle(of_lanes);
    for (bool some = true; some;) {
      some = false;
      for (const unsigned warp : of_warps) {
        bool runs;
        do {
          runs = false;
          for (const unsigned lane : of_lanes) {
            if (fiber(warp * kWarp + lane).state != State::ready) continue;
            runs = some = true;
            resume(warp * kWarp + lane);
            if (!failure.empty()) throw std::runtime_error(failure);
          }
        } while (runs && seed % 2 == 1);  // a warp goes on as far as it can, else all take turns
      }
    }
    for (unsigned i = 0; i < count; ++i)
      if (fiber(i).state != State::done)
        throw std::runtime_error("thread " + std::to_string(i) + " of block " + std::to_string(block) + " waits for ever");
  }
}

}  // namespace cuda_on_host

// ---------------------------------------------------------------------------------------------------------------- torch's part

extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = error == 0 ? nullptr : strdup("a call of CUDA failed");
  return 0;
}
void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

}  // extern "C"
