#include "thread_pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qwenstack {
namespace {

// Longer than the gap between two kernels of one step, shorter than anyone would notice in an idle process.
constexpr auto kSpinTime = std::chrono::microseconds(100);
constexpr int kPausesPerLook = 64;  // reading the clock costs about as much as a pause

void pause_a_moment() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// Returns whether `is_ready` came true within the spin time.
template <typename Condition>
bool spin_until(Condition is_ready) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    do {
        for (int i = 0; i < kPausesPerLook; ++i) {
            if (is_ready()) {
                return true;
            }
            pause_a_moment();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return false;
}

bool has_unclaimed_chunk(uint64_t ticket) { return static_cast<uint32_t>(ticket) < (ticket >> 32); }

}  // namespace

ThreadPool::ThreadPool(size_t num_threads) {
    try {
        for (size_t thread = 1; thread < num_threads; ++thread) {
            workers_.emplace_back([this, thread] { work_until_stopped(thread); });
        }
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    stopping_.store(true);
    wakeups_.fetch_add(1);
    wakeups_.notify_all();
    for (std::thread& worker : workers_) {
        worker.join();
    }
}

void ThreadPool::run_job(size_t num_chunks, Function function, void* context) {
    if (num_chunks <= 1 || workers_.empty()) {
        for (size_t chunk = 0; chunk < num_chunks; ++chunk) {
            function(context, chunk, 0);
        }
        return;
    }
    function_ = function;
    context_ = context;
    num_done_.store(0, std::memory_order_relaxed);
    ticket_.store(static_cast<uint64_t>(num_chunks) << 32, std::memory_order_release);
    wakeups_.fetch_add(1);
    wakeups_.notify_all();
    while (work_on_one_chunk(0)) {
    }
    const auto is_done = [&] { return num_done_.load(std::memory_order_acquire) == num_chunks; };
    while (!spin_until(is_done)) {
        std::this_thread::yield();  // a thread lost its core in the middle of a chunk
    }
}

bool ThreadPool::work_on_one_chunk(size_t thread) {
    uint64_t ticket = ticket_.load(std::memory_order_relaxed);
    do {
        if (!has_unclaimed_chunk(ticket)) {
            return false;
        }
    } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acquire, std::memory_order_relaxed));
    function_(context_, static_cast<uint32_t>(ticket), thread);
    num_done_.fetch_add(1, std::memory_order_release);
    return true;
}

void ThreadPool::work_until_stopped(size_t thread) {
    while (!stopping_.load()) {
        const uint32_t seen = wakeups_.load();
        while (work_on_one_chunk(thread)) {
        }
        const bool is_awake = spin_until([&] { return wakeups_.load(std::memory_order_relaxed) != seen; });
        if (!is_awake) {
            wakeups_.wait(seen);
        }
    }
}

}  // namespace qwenstack
