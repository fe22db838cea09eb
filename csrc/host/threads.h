// How the host module runs work on several threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace regframe {

inline int64_t threads_wanted(int threads) { return threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency()); }

// work() on this thread and up to wanted - 1 others, which share it out among themselves. Where the system gives no more threads,
// those there are do it all: to go on is what an exception could not, for it would find threads running and end the process.
// What work throws is thrown here, when all have ended.
template <class Work>
void on_threads(int64_t wanted, const Work& work) {
  std::exception_ptr thrown;
  std::mutex one_at_a_time;
  const auto guarded = [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(one_at_a_time);
      if (!thrown) thrown = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(std::max<int64_t>(0, wanted - 1)));
  try {
    while (static_cast<int64_t>(others.size()) + 1 < wanted) others.emplace_back(guarded);
  } catch (const std::system_error&) {
  }
  guarded();
  for (auto& thread : others) thread.join();
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace regframe
