#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace soroq {

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 2000;     // before the processor is offered to others
constexpr int kIdleUs = 200;  // a worker without work spins so long, then sleeps

// Spins until done() holds; yields after a while, for machines with more threads than processors.
template <typename Done>
void spin_until(const Done& done) {
  for (int i = 0; !done(); ++i) {
    if (i < kSpins) {
      pause();
    } else {
      sched_yield();
    }
  }
}

int processors() {
#if defined(__linux__)
  cpu_set_t set;  // those this process may use, as taskset or a container says
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int>(n) : 1;
}

int wanted_threads() {
  const char* text = std::getenv("SOROQ_NUM_THREADS");
  const int n = text ? std::atoi(text) : 0;
  return n > 0 ? n : processors();
}

thread_local bool inside = false;  // a team's work

class Team {
 public:
  explicit Team(int count) : count_(count) {
    for (int i = 1; i < count; ++i) workers_.emplace_back([this, i] { serve(i); });
  }

  ~Team() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int count() const { return count_; }

  // noexcept: members that still work would outlive what they work on.
  void run(const std::function<void(const Member&)>& work) noexcept {
    work_ = &work;
    left_.store(count_ - 1, std::memory_order_relaxed);
    bool asleep;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
      asleep = sleepers_ > 0;
    }
    if (asleep) wake_.notify_all();
    work(Member(0, count_));
    spin_until([this] { return left_.load(std::memory_order_acquire) == 0; });
  }

  void barrier() {
    if (count_ == 1) return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
  }

 private:
  void serve(int index) {
    inside = true;
    unsigned seen = 0;
    for (;;) {
      wait_for_work(seen);
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      (*work_)(Member(index, count_));
      left_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void wait_for_work(unsigned seen) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(kIdleUs);
    while (generation_.load(std::memory_order_acquire) == seen) {
      for (int i = 0; i < 64; ++i) pause();
      if (std::chrono::steady_clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      ++sleepers_;
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      --sleepers_;
      return;
    }
  }

  const int count_;
  std::vector<std::thread> workers_;
  const std::function<void(const Member&)>* work_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  int sleepers_ = 0;
  bool stop_ = false;
  // Apart from each other, so that a waiting member doesn't slow the arriving ones.
  alignas(64) std::atomic<unsigned> generation_{0};
  alignas(64) std::atomic<int> left_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

std::mutex turns;  // held while a team works or changes
int wanted = 0;
std::unique_ptr<Team> team;

void forget_team() {
  team.release();  // its destructor would wait
  turns.unlock();
}

// Threads don't survive a fork: a child makes a team of its own. A fork waits until no team works,
// else the child would have a lock that nobody opens; and the child forgets its parent's team at
// once, since a child that merely exits would wait for threads that it doesn't have.
void survive_forks() {
  static const int refused = pthread_atfork([] { turns.lock(); }, [] { turns.unlock(); },
                                            forget_team);
  if (refused) std::fputs("soroq: no kernels in forked children: out of memory\n", stderr);
}

Team& the_team() {
  survive_forks();
  if (wanted == 0) wanted = wanted_threads();
  if (!team || team->count() != wanted) {
    team.reset();
    team = std::make_unique<Team>(wanted);
  }
  return *team;
}

}  // namespace

void Member::barrier() const {
  if (count > 1) team->barrier();
}

void run(const std::function<void(const Member&)>& work) {
  if (inside) {
    std::fputs("soroq: a kernel was called from inside a kernel\n", stderr);
    std::abort();
  }
  const std::lock_guard<std::mutex> lock(turns);
  inside = true;
  the_team().run(work);
  inside = false;
}

int num_threads() {
  const std::lock_guard<std::mutex> lock(turns);
  if (wanted == 0) wanted = wanted_threads();
  return wanted;
}

void set_num_threads(int n) {
  const std::lock_guard<std::mutex> lock(turns);
  wanted = n < 1 ? 1 : n;
}

}  // namespace soroq
