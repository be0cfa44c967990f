// Milliseconds of each GPU kernel of the LIF simulator, without JAX: for work on the kernels.
//
//   nvcc -O3 -std=c++17 -arch=native -I csrc -o /tmp/lif_cuda benchmarks/lif_cuda.cu
//   /tmp/lif_cuda [batch 32] [neurons 100] [longest delay 20] [dt 0.5] [repeats 5] [rate 10] [shortest delay 0]
//
// The work of benchmarks/backends.py: 700 inputs, 8,000 events a sample around a quarter of 1,370 ms, recurrent.
// The scale of the input weights is searched for until the neurons fire at `rate` Hz. A line a kernel: the median over
// the repeats of its time summed over the chunks.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../csrc/lif_cuda.cu"

using R = float;
namespace {

void check(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(e));
  std::exit(1);
}
template <class T>
T* upload(const std::vector<T>& x) {
  T* out;
  check(cudaMalloc(&out, std::max<size_t>(x.size(), 1) * sizeof(T)));
  check(cudaMemcpy(out, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  return out;
}
template <class T>
T* room(size_t n) {
  T* out;
  check(cudaMalloc(&out, std::max<size_t>(n, 1) * sizeof(T)));
  check(cudaMemset(out, 0, n * sizeof(T)));
  return out;
}

// Times of what lies between calls, by name.
struct Clock {
  std::vector<std::pair<std::string, cudaEvent_t>> marks;
  void mark(const char* name) {
    cudaEvent_t e;
    check(cudaEventCreate(&e));
    check(cudaEventRecord(e));
    marks.emplace_back(name, e);
  }
  std::map<std::string, double> read() {
    std::map<std::string, double> out;
    check(cudaDeviceSynchronize());
    for (size_t k = 1; k < marks.size(); ++k) {
      float ms;
      check(cudaEventElapsedTime(&ms, marks[k - 1].second, marks[k].second));
      out[marks[k].first] += ms, out["all"] += ms;
    }
    for (auto& m : marks) cudaEventDestroy(m.second);
    marks.clear();
    return out;
  }
};

}  // namespace

int main(int argc, char** argv) {
  auto option = [&](int k, double otherwise) { return argc > k ? std::atof(argv[k]) : otherwise; };
  const int64_t s = int64_t(option(1, 32)), n = int64_t(option(2, 100)), m = 700, e = 8000;
  const double longest = option(3, 20), dt = option(4, 0.5), rate = option(6, 10), shortest = option(7, 0);
  const int repeats = int(option(5, 5));
  const double duration = 1370;
  std::mt19937_64 r(0);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  std::vector<R> time(s * e), w_in(m * n), w_rec(n * n), d_in(m * n), d_rec(n * n);
  std::vector<int32_t> channel(s * e);
  for (int64_t b = 0; b < s; ++b) {
    for (int64_t k = 0; k < e; ++k) {
      double t = duration / 4 + duration / 8 * normal(r);
      if (!(t >= 0 && t < duration)) t = uniform(r) * duration / 2;
      time[b * e + k] = R(t), channel[b * e + k] = int32_t(r() % m);
    }
    std::sort(time.begin() + b * e, time.begin() + (b + 1) * e);
  }
  for (auto& x : w_in) x = R(0.3 + normal(r));
  for (auto& x : w_rec) x = R(0.1 / std::sqrt(double(n)) * normal(r));
  for (auto& x : d_in) x = R(shortest + (longest - shortest) * uniform(r));
  for (auto& x : d_rec) x = R(shortest + (longest - shortest) * uniform(r));
  ranvier::Call<R> c{};
  c.n_samples = s, c.n_sets = 1, c.per_set = s, c.n_inputs = m, c.n = n, c.n_events = e;
  c.n_steps = int64_t(std::ceil(duration / dt)) + 1, c.capacity = int64_t(5 * rate * n * duration / 1e3);
  c.n_slots = int64_t(std::floor(longest / dt)) + 2, c.dt = R(dt), c.unit = 1, c.recurrent = true, c.keep = true;
  c.time = upload(time), c.channel = upload(channel), c.d_in = upload(d_in), c.d_rec = upload(d_rec);
  c.w_rec = upload(w_rec);
  R* weights = room<R>(m * n);
  c.w_in = weights;
  c.tau_mem = upload(std::vector<R>(n, 10)), c.tau_syn = upload(std::vector<R>(n, 2));
  c.v_th = upload(std::vector<R>(n, 1));
  c.count = room<R>(s * n), c.first_offset = room<R>(s * n), c.v = room<R>(s * n);
  c.first_step = room<int32_t>(s * n), c.overflow = room<int32_t>(s), c.n_spikes = room<int32_t>(s);
  c.spike_step = room<int32_t>(s * c.capacity), c.spike_neuron = room<int32_t>(s * c.capacity);
  c.spike_g = room<R>(s * c.capacity), c.spike_state = room<R>(s * c.capacity * 5);
  c.v_free = room<R>(s * n * c.n_steps);
  c.ct_count = upload(std::vector<R>(s * n, R(0.1))), c.ct_first = room<R>(s * n), c.ct_v = room<R>(s * n);
  c.ct_g = room<R>(s * c.capacity);
  c.dw_in = room<R>(m * n), c.dd_in = room<R>(m * n), c.dw_rec = room<R>(n * n), c.dd_rec = room<R>(n * n);
  const size_t forward = ranvier::lif_forward_scratch(c), backward = ranvier::lif_backward_scratch(c);
  char* scratch = room<char>(std::max(forward, backward));

  std::vector<R> count(s * n);
  double low = 1e-3, high = 0.1, scale = 0, spikes = 0;
  for (int k = 0; k < 12; ++k) {
    scale = std::sqrt(low * high);
    std::vector<R> scaled(w_in);
    for (auto& x : scaled) x *= R(scale);
    check(cudaMemcpy(weights, scaled.data(), scaled.size() * sizeof(R), cudaMemcpyHostToDevice));
    check(ranvier::lif_forward(c, scratch, nullptr));
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(count.data(), c.count, count.size() * sizeof(R), cudaMemcpyDeviceToHost));
    spikes = 0;
    for (R x : count) spikes += x;
    (spikes / double(s * n) / duration * 1e3 < rate ? low : high) = scale;
  }

  std::map<std::string, std::vector<double>> times;
  Clock clock;
  for (int k = 0; k < repeats + 1; ++k) {
    auto watch = [&](const char* name) { clock.mark(name); };
    watch("start");
    check(ranvier::run_forward(c, scratch, nullptr, watch));
    check(ranvier::run_backward<R, false>(c, scratch, nullptr, watch));
    auto here = clock.read();
    if (k)
      for (auto& [name, ms] : here) times[name].push_back(ms);
  }
  std::vector<R> g(m * n);
  check(cudaMemcpy(g.data(), c.dw_in, g.size() * sizeof(R), cudaMemcpyDeviceToHost));
  double sum = 0;
  for (R x : g) sum += std::fabs(x);
  std::printf("batch %lld, N %lld, delays %g to %g ms, dt %g: %.1f Hz, sum of |dL/dw| %.6g, scratch %.0f MiB\n",
              (long long)s, (long long)n, shortest, longest, dt, spikes / double(s * n) / duration * 1e3, sum,
              double(std::max(forward, backward)) / (1 << 20));
  for (auto& [name, ms] : times) {
    std::sort(ms.begin(), ms.end());
    const double middle = ms[ms.size() / 2];
    std::printf("  %-16s %7.3f ms (%.3f to %.3f)", name.c_str(), middle, ms.front(), ms.back());
    if (name == "all") std::printf("  %.0f samples/s", double(s) / middle * 1e3);
    std::printf("\n");
  }
}
