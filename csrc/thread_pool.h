// A few threads that share one job at a time.
//
// Chunks of a job are claimed one by one from an atomic counter, so a thread that lost its core holds up one chunk and
// not its share of the whole job. The calling thread works too and returns when every chunk is done; it never waits for
// a thread that has not claimed anything, so a job also ends if the other threads never come (after a fork, say).
// Between jobs threads spin for a moment, because the next kernel usually follows at once, and then sleep.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace qwenstack {

class ThreadPool {
public:
    static constexpr size_t kMaxThreads = 256;

    // `num_threads` counts the calling thread. Throws std::system_error if the system gives no more threads.
    explicit ThreadPool(size_t num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    size_t num_threads() const { return workers_.size() + 1; }

    // Calls `work(chunk, thread)` for each chunk below `num_chunks` and returns when all calls have. `thread` is below
    // `num_threads()` and differs between calls that run at the same time. `work` must not throw. One caller at a time,
    // fewer than 2^32 chunks.
    template <typename Work>
    void run(size_t num_chunks, Work&& work) {
        run_job(
            num_chunks,
            [](void* context, size_t chunk, size_t thread) {
                (*static_cast<std::remove_reference_t<Work>*>(context))(chunk, thread);
            },
            &work);
    }

    // The same, for chunks in the order of the tokens that they are about: half of the threads begin with the first
    // chunk and half with the middle one, so that a thread meets in one operation mostly what it wrote in the last. Who
    // is through with a half takes the other's last ones.
    template <typename Work>
    void run_in_halves(size_t num_chunks, Work&& work) {
        const size_t middle = (num_chunks + 1) / 2;
        std::atomic<uint64_t> claimed{0};  // from the middle on in the high half, from the first on in the low half
        run(num_chunks, [&](size_t, size_t thread) {  // as often as there are chunks: the claims meet and never cross
            const bool is_first_half = thread % 2 == 0;
            const uint64_t before = claimed.fetch_add(is_first_half ? 1 : uint64_t{1} << 32, std::memory_order_relaxed);
            const size_t claim = is_first_half ? static_cast<uint32_t>(before) : before >> 32;
            if (is_first_half) {
                work(claim < middle ? claim : num_chunks - 1 - (claim - middle), thread);
            } else {
                work(claim < num_chunks - middle ? middle + claim : num_chunks - 1 - claim, thread);
            }
        });
    }

private:
    using Function = void (*)(void* context, size_t chunk, size_t thread);

    void stop();
    void run_job(size_t num_chunks, Function function, void* context);
    bool work_on_one_chunk(size_t thread);
    void work_until_stopped(size_t thread);

    // Chunks of the current job in the high half, the next unclaimed one in the low half. A thread owns a chunk once
    // its compare-and-swap has counted it: the job then cannot end before that chunk is done, so what is read after the
    // claim belongs to the claimed job, however late the thread comes.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<uint32_t> num_done_{0};
    Function function_ = nullptr;
    void* context_ = nullptr;
    std::atomic<uint32_t> wakeups_{0};  // counts jobs; sleeping threads wait for a change
    std::atomic<bool> stopping_{false};
    std::vector<std::thread> workers_;
};

}  // namespace qwenstack
