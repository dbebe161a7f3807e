// The team of threads and the decoder: the same bits for any number of threads, whoever calls.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "decoder.h"
#include "selftest.h"

#if defined(__SANITIZE_THREAD__)
#define SOROQ_TSAN 1
#else
#define SOROQ_TSAN 0
#endif

// A forked child has its parent's memory without the threads that would free it.
bool is_child = false;
extern "C" int __lsan_is_turned_off() { return is_child; }

namespace selftest {

namespace {

constexpr int kThreads[] = {1, 2, 3, 7};

std::vector<float> product(const Weight& weight, const std::vector<float>& x, int64_t M,
                           Precision precision) {
  std::vector<float> y(M * weight.w.N, kNaN);
  matmul(weight.w, precision, x.data(), weight.w.K, M, Finish{y.data(), weight.w.N});
  return y;
}

void check_runs(Report& report, int threads, int runs) {
  set_num_threads(threads);
  std::vector<int> seen(threads, 0);  // plain: the team itself must order all access
  for (int i = 0; i < runs; ++i) {
    run([&](const Member& me) { ++seen[me.index]; });
  }
  report.check(seen == std::vector<int>(threads, runs),
               "short runs with " + std::to_string(threads) + " threads");
}

void check_barriers(Report& report, int threads, int phases) {
  set_num_threads(threads);
  std::vector<int> at(threads, -1);
  std::atomic<int> wrong{0};
  run([&](const Member& me) {
    for (int phase = 0; phase < phases; ++phase) {
      at[me.index] = phase;
      me.barrier();
      for (const int other : at) wrong += other != phase;
      me.barrier();
    }
  });
  report.check(wrong == 0, "barriers with " + std::to_string(threads) + " threads");
}

// Every item belongs to exactly one member.
void check_parts(Report& report) {
  bool ok = true;
  for (const int count : kThreads) {
    for (const int64_t n : {0, 1, 5, 64, 1001}) {
      int64_t at = 0;
      for (int i = 0; i < count; ++i) {
        const Member me(i, count);
        ok = ok && me.begin(n) == at && me.end(n) >= at;
        at = me.end(n);
      }
      ok = ok && at == n;
    }
  }
  report.check(ok, "parts of a member");
}

// The memory of a panel is touched by the member that reads it in a product, and by no other.
void check_touch(Report& report, Random& random, bool gated) {
  constexpr int64_t page = 4096;
  const Weight weight(PanelShape{14 * kPanel, 100, 16, 100, true, true}, random);
  const PanelWeight& w = weight.w;
  const std::vector<float> x = random.reals(w.K);
  const int64_t N = gated ? w.N / 2 : w.N, panels = gated ? 2 : 1;
  bool ok = true;
  for (const int count : kThreads) {
    for (int i = 0; i < count; ++i) {
      const Member me(i, count);
      std::vector<float> y(N, kNaN);
      Finish finish{y.data(), N};
      if (gated) finish.gate = Finish::silu;
      finish.gated_rows = N;
      multiply(me, w, Precision::exact, {}, x.data(), w.K, 1, finish);
      std::vector<uint8_t> data(w.total_bytes(), 0xFF);
      touch_panels(me, w, gated, data.data());
      for (int64_t at = 0; at < w.total_bytes(); at += page) {
        const int64_t end = std::min(at + page, w.total_bytes());
        const auto reader = [&](int64_t byte) {
          return !std::isnan(y[byte / w.panel_bytes() / panels * kPanel]);
        };
        const bool touched = std::count(&data[at], data.data() + end, 0) > 0;
        if (reader(at) == reader(end - 1)) ok = ok && touched == reader(at);
      }
      ok = ok && std::all_of(data.begin(), data.end(), [](uint8_t b) { return b == 0 || b == 0xFF; });
    }
  }
  report.check(ok, gated ? "pairs of panels are touched by their readers"
                         : "panels are touched by their readers");
}

void check_callers(Report& report, const Weight& weight, const std::vector<float>& x,
                   const std::vector<float>& want, int rounds) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < rounds; ++i) {
        if (caller == 2) set_num_threads(1 + i % 3);
        wrong += !same_bits(product(weight, x, 9, Precision::int8), want);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  report.check(wrong == 0, "three threads that call at once");
}

// What a forked child exits with, or -1 if a signal (its alarm) ended it.
template <typename Work>
int in_child(const Work& work) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    is_child = true;
    alarm(60);
    std::exit(work());  // with all destructors: the parent's team must not be waited for
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void check_fork(Report& report, const Weight& weight, const std::vector<float>& x,
                const std::vector<float>& want, int threads) {
  const auto work = [&] {
    set_num_threads(is_child ? threads : 3);
    return same_bits(product(weight, x, 9, Precision::int8), want) ? 0 : 1;
  };
  report.check(work() == 0 && in_child(work) == 0, "a child after fork");
  report.check(in_child([] { return 0; }) == 0, "a child that only exits");
  report.check(in_child([&] { return in_child(work); }) == 0, "a child of a child");
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) work();
  });
  bool ok = true;
  for (int i = 0; i < 5; ++i) ok = ok && in_child(work) == 0;
  stop = true;
  other.join();
  report.check(ok && work() == 0, "a child after fork while another thread computes");
}

// A decoder of two blocks with all that a block may have.
class Model {
 public:
  Model(bool full, Precision precision, float embed_scale = 2.0f) : random_(full ? 7 : 8) {
    const int64_t H = 96, D = 16, heads = 4, kv = 2, F = 100, V = 333, T = 640;
    const DecoderConfig config{H,     heads, kv,    D,         F,        V, T,
                               1e-6f, embed_scale,  0.25f, full, precision, precision};
    const auto weight = [&](int64_t N, int64_t K, int bits, int64_t group) -> const PanelWeight& {
      weights_.emplace_back(PanelShape{N, K, bits, group, !full, full}, random_);
      return weights_.back().w;
    };
    weights_.reserve(20);
    std::vector<DecoderBlock> blocks;
    for (int i = 0; i < 2; ++i) {
      DecoderBlock b = {weight(heads * D, H, 4, 32),
                        weight(kv * D, H, full && i == 1 ? 8 : 4, full ? 48 : 32),
                        weight(kv * D, H, 4, 32), weight(H, heads * D, 4, 64),
                        weight(256, H, full ? 4 : 16, H), weight(H, F, 8, 32),
                        norm(H), {}, norm(H), {}, {}, {}, {}, {}, {}, 0, full && i == 0 ? 9 : 0};
      if (full) {
        b.after_attention_norm = norm(H);
        b.after_ffn_norm = norm(H);
        b.q_norm = norm(D);
        b.k_norm = norm(D);
        b.q_bias = norm(heads * D);
        b.k_bias = norm(kv * D);
        b.v_bias = norm(kv * D);
      }
      blocks.push_back(b);
    }
    Rotary rotary;
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t i = 0; i < D / 2; ++i) {
        const double angle = static_cast<double>(t) * std::pow(1e4, -2.0 * static_cast<double>(i) / D);
        rotary.cosines.push_back(static_cast<float>(std::cos(angle)));
        rotary.sines.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    const PanelWeight& embedding = weight(V, H, 8, 32);
    decoder = std::make_unique<Decoder>(config, blocks, std::vector<Rotary>{rotary}, norm(H),
                                        embedding, embedding);
  }

  // Logits of n tokens, taken `step` at a time behind the first `from`.
  std::vector<float> logits(const std::vector<int64_t>& ids, int64_t from, int64_t n, int64_t step) {
    decoder->rewind(from);
    std::vector<float> out(n * 333, kNaN);
    for (int64_t i = 0; i < n; i += step) {
      decoder->step(&ids[from + i], std::min(step, n - i), &out[i * 333], true, nullptr, nullptr, 0);
    }
    return out;
  }

  std::unique_ptr<Decoder> decoder;

 private:
  std::vector<float> norm(int64_t n) {
    std::vector<float> out = random_.reals(n);
    for (float& v : out) v = 1 + 0.3f * v;
    return out;
  }
  Random random_;
  std::vector<Weight> weights_;
};

// The greatest difference, relative to the greatest value.
double apart(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 1e-30, difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::isfinite(a[i]) && std::isfinite(b[i]))) return 1e9;
    most = std::fmax(most, std::fabs(a[i]));
    difference = std::fmax(difference, std::fabs(a[i] - b[i]));
  }
  return difference / most;
}

void check_model(Report& report, const std::string& isa, bool full, Precision precision,
                 const std::vector<int64_t>& ids, bool quick) {
  const std::string name = isa + (full ? " decoder, all parts" : " decoder") +
                           (precision == Precision::exact ? " exact" : " rounded");
  Model model(full, precision);
  const int64_t n = 40;
  set_num_threads(2);
  const std::vector<float> once = model.logits(ids, 0, n, n);
  for (const int64_t step : {1, 3, 7}) {
    // Rounded keys and values may fall to either side: one step of bfloat16 is 2^-8.
    const double difference = apart(once, model.logits(ids, 0, n, step));
    report.check(difference < 0.02, name + ", " + std::to_string(step) +
                                        " tokens at a time: differs by " + std::to_string(difference));
  }
  model.logits(ids, 0, n - 12, n - 12);
  const std::vector<float> tail = model.logits(ids, n - 12, 12, 12);
  model.logits(ids, n - 5, 5, 1);
  report.check(same_bits(tail, model.logits(ids, n - 12, 12, 12)), name + ", rewind");
  for (const int threads : kThreads) {
    set_num_threads(threads);
    bool ok = same_bits(once, model.logits(ids, 0, n, n));
    int64_t best[5] = {};
    float scores[5] = {};
    model.decoder->rewind(n - 1);
    model.decoder->step(&ids[n - 1], 1, nullptr, false, best, scores, 5);
    std::vector<float> last(333, kNaN);
    model.decoder->rewind(n - 1);
    model.decoder->step(&ids[n - 1], 1, last.data(), false, nullptr, nullptr, 0);
    for (int i = 0; i < 5; ++i) {
      int above = 0;
      for (const float value : last) above += value > scores[i];
      ok = ok && last[best[i]] == scores[i] && above <= i;
    }
    report.check(ok, name + " with " + std::to_string(threads) + " threads");
  }
  if (!quick) {  // more than go through the blocks at once
    const std::vector<float> all = model.logits(ids, 0, 600, 600);
    report.check(apart(all, model.logits(ids, 0, 600, 150)) < 0.02, name + ", 600 tokens");
  }
}

}  // namespace

void test_pool(Report& report, bool quick) {
  check_parts(report);
  for (const int threads : kThreads) {
    check_runs(report, threads, quick ? 200 : 3000 / threads);
    check_barriers(report, threads, quick ? 20 : 300 / threads);
  }
  Random random(99);
  check_touch(report, random, false);
  check_touch(report, random, true);
  const Weight weight(PanelShape{520, 200, 4, 64, false, true}, random);
  const std::vector<float> x = random.reals(300 * 200);
  for (const std::string& isa : isas()) {
    select_isa(isa);
    for (const Precision precision : {Precision::exact, Precision::int8, Precision::int16}) {
      for (const int64_t M : {1, 9, 300}) {
        if (quick && M == 300) continue;
        set_num_threads(1);
        const std::vector<float> want = product(weight, x, M, precision);
        for (const int threads : kThreads) {
          set_num_threads(threads);
          report.check(same_bits(product(weight, x, M, precision), want),
                       isa + " product of M" + std::to_string(M) + " with " +
                           std::to_string(threads) + " threads");
        }
      }
    }
  }
  const std::vector<float> want = product(weight, x, 9, Precision::int8);
  check_callers(report, weight, x, want, quick ? 5 : 50);
  // The sanitizer of threads can't follow them into a child; qemu can't start them there.
  if (!SOROQ_TSAN) check_fork(report, weight, x, want, quick ? 1 : 3);
}

void test_decoder(Report& report, bool quick) {
  Random random(5);
  std::vector<int64_t> ids(600);
  for (int64_t& id : ids) id = random.below(333);
  for (const std::string& isa : isas()) {
    select_isa(isa);
    for (const bool full : {false, true}) {
      check_model(report, isa, full, Precision::exact, ids, quick);
      check_model(report, isa, full, Precision::int16, ids, quick);
    }
  }
  // Scores that are no numbers come first and don't lead outside of memory.
  for (const float embed_scale : {2.0f, kNaN}) {
    Model model(true, Precision::int8, embed_scale);
    int64_t best[64];
    float scores[64];
    model.decoder->step(ids.data(), 3, nullptr, false, best, scores, 64);
    bool ok = true;
    for (int i = 0; i < 64; ++i) {
      ok = ok && best[i] >= 0 && best[i] < 333 && std::isnan(scores[i]) == std::isnan(embed_scale);
    }
    report.check(ok, "64 best of 333 scores");
  }
}

}  // namespace selftest
