// Part of kernels_impl.h: activations as integers. Included there, inside the namespace of one
// instruction set.

// Writes at most L whole numbers as bytes.
inline void put_bytes(int8_t* to, int64_t room, vf values) {
  const vi whole = __builtin_convertvector(values, vi);
  if (room >= L) {
    V::store_bytes(to, whole);
  } else {
    for (int i = 0; i < room; ++i) to[i] = static_cast<int8_t>(whole[i]);
  }
}

// Of the sizes of quads, the three greatest: lane by lane, then of all. The lanes of a quad hold the
// same, and only a vector's quads differ.
struct Tops {
  static_assert(kApart == 2, "three are kept");
  vf first = {}, second = {}, third = {};

  void take(vf quad) {
    third = max_of(third, min_of(second, quad));
    second = max_of(second, min_of(first, quad));
    first = max_of(first, quad);
  }

  // Afterwards all lanes hold the same.
  void merge() {
    for (int distance = L / 2; distance >= 4; distance /= 2) {
      const vf a = V::swap(first, distance), b = V::swap(second, distance);
      const vf c = V::swap(third, distance);
      third = max_of(max_of(third, c), max_of(min_of(first, b), min_of(second, a)));
      second = max_of(min_of(first, a), max_of(second, b));
      first = max_of(first, a);
    }
  }
};

// What a chunk of one token becomes: x times `inverse`, rounded.
struct Rounding {
  float inverse, scale;
};

inline Rounding rounding_for(float most, float step_top, float bad) {
  const bool usable = step_top > 1e-30f && bad == 0.0f;
  return {usable ? most / step_top : 0.0f, (usable ? step_top / most : 0.0f) + bad};
}

inline vf round_to_whole(vf v) {
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23
  return (v + magic) - magic;
}

// The quads apart, from a bit for the first lane of each: their upper bits, which leave the plane.
inline void set_apart(uint64_t low, uint64_t high, const float* values, int8_t* codes, Apart* apart) {
  typedef float v4 __attribute__((vector_size(16)));
  typedef int32_t i4 __attribute__((vector_size(16)));
  for (int i = 0; i < kApart; ++i) {
    const bool is_low = low != 0;
    const uint64_t word = is_low ? low : high;
    if (word == 0) {
      apart->quad[i] = apart->codes[i] = 0;
      continue;
    }
    const int column = __builtin_ctzll(word) + (is_low ? 0 : 64);
    const uint64_t rest = word & (word - 1);
    low = is_low ? rest : 0;
    high = is_low ? high : rest;
    const v4 value = load<v4>(values + column), magic = 12582912.0f - v4{};
    const v4 steps = (value * 0.0078125f + magic) - magic;
    const i4 is_far = (value > 127.5f) | (value < -127.5f);
    const i4 upper = __builtin_convertvector(steps, i4) & is_far;
    const i4 lower = __builtin_convertvector(value, i4) - (upper << 7);
    int8_t bytes[4];
    for (int j = 0; j < 4; ++j) {
      bytes[j] = static_cast<int8_t>(upper[j]);
      codes[column + j] = static_cast<int8_t>(lower[j]);
    }
    apart->quad[i] = column / 4;
    __builtin_memcpy(&apart->codes[i], bytes, 4);
  }
}

// One plane: writes codes (chunk) and the quads apart, those whose size (of a vector of quads each) is
// above `limit`; returns the sum of the values.
inline int32_t round_one_plane(const float* from, int64_t length, int64_t chunk, float inverse,
                               const vf* sizes, float limit, int8_t* codes, Apart* apart) {
  float values[kMaxChunk + L];
  uint64_t far[2] = {0};
  vf sum = {};
  int64_t k = 0;
  if (inverse != 0.0f) {
    for (; k < length; k += L) {
      const vf value = round_to_whole(load<vf>(from + k) * inverse);
      sum += value;
      store(values + k, value);
      far[k / 64] |= static_cast<uint64_t>(V::bits(sizes[k / L] > limit)) << (k % 64);
      put_bytes(codes + k, chunk - k, value);  // of those far off anything: they are written below
    }
  }
  for (; k < chunk; ++k) codes[k] = 0;
  constexpr uint64_t kFirst = 0x1111111111111111u;
  set_apart(far[0] & kFirst, far[1] & kFirst, values, codes, apart);
  return static_cast<int32_t>(sum_of(sum));
}

// One plane whose scale reaches all values, or two.
template <int planes>
inline int32_t round_all(const float* from, int64_t length, int64_t chunk, float inverse,
                         int8_t* codes) {
  vf sum = {};
  int64_t k = 0;
  if (inverse != 0.0f) {
    for (; k < length; k += L) {
      const vf value = round_to_whole(load<vf>(from + k) * inverse);
      sum += value;
      vf first = value;
      if (planes == 2) {
        first = round_to_whole(value * 0.0078125f);
        put_bytes(codes + chunk + k, chunk - k, value - first * 128.0f);
      }
      put_bytes(codes + k, chunk - k, first);
    }
  }
  for (; k < chunk; ++k) {
    codes[k] = 0;
    if (planes == 2) codes[chunk + k] = 0;
  }
  return static_cast<int32_t>(sum_of(sum));
}

void round_row(const PanelShape& s, const float* x, int64_t m, const RoundedX& out) {
  const int64_t chunk = s.chunk(), n = s.n_chunks();
  for (int64_t c = 0; c < n; ++c) {
    const int64_t length = s.chunk_length(c), at = c * out.M + m;
    float padded[kMaxChunk + L];
    const float* from = x + s.chunk_start(c);
    if (length % L) {
      for (int64_t k = 0; k < length; ++k) padded[k] = from[k];
      for (int64_t k = length; k % L; ++k) padded[k] = 0;
      from = padded;
    }
    vf poison = {}, most = {}, sizes[kMaxChunk / L];
    Tops tops;
    for (int64_t k = 0; k < length; k += L) {
      const vf v = load<vf>(from + k), size = max_of(v, -v);
      poison += v * 0.0f;  // NaN if a value isn't finite
      most = max_of(most, size);
      if (out.apart) tops.take(sizes[k / L] = V::quad_max(size));
    }
    const float bad = sum_of(poison);
    int8_t* codes = out.codes + at * out.planes * chunk;
    Rounding r;
    if (out.apart) {
      tops.merge();
      const float near = tops.third[0], least = tops.first[0] * 0.0078125f;
      const float limit = near > least ? near : least;
      r = rounding_for(127.0f, limit, bad);
      out.sums[at] =
          round_one_plane(from, length, chunk, r.inverse, sizes, limit, codes, out.apart + at);
    } else {
      most = V::quad_max(most);
      for (int d = L / 2; d >= 4; d /= 2) most = max_of(most, V::swap(most, d));
      r = rounding_for(out.planes == 2 ? 127.0f * 128.0f : 127.0f, most[0], bad);
      const auto round = out.planes == 2 ? round_all<2> : round_all<1>;
      out.sums[at] = round(from, length, chunk, r.inverse, codes);
    }
    out.scales[at] = r.scale;
  }
}
