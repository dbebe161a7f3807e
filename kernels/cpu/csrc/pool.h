// One team of threads for all kernels: it spins between the steps of a product or a decoder and
// sleeps when there is nothing to do. Results never depend on how many threads there are.
#pragma once

#include <cstdint>
#include <functional>

namespace soroq {

// One member of a team inside `run`.
class Member {
 public:
  Member(int index, int count) : index(index), count(count) {}
  const int index, count;

  // Waits until all members are here; what they wrote before is visible after.
  void barrier() const;

  // This member's part of n items: [begin, end), contiguous and as even as can be.
  int64_t begin(int64_t n) const { return n * index / count; }
  int64_t end(int64_t n) const { return n * (index + 1) / count; }
};

// Runs work(member) on every member at once and returns when all have. Calls from several threads
// take turns. A call from inside work is an error and ends the process.
void run(const std::function<void(const Member&)>& work);

// How many members a team has: SOROQ_NUM_THREADS, else the processors this process may use.
int num_threads();

// Changes it for the next `run`; n is at least 1.
void set_num_threads(int n);

}  // namespace soroq
