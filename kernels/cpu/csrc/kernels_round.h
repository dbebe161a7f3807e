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

// Of |x|: the greatest, and the greatest of all quads but the kApart greatest ones, in any order of
// lanes: the lanes of a quad hold the same.
struct Tops {
  static_assert(kApart == 2, "three are kept");
  vf first = {}, second = {}, third = {};

  void take(vf quad) {
    third = max_of(third, min_of(second, quad));
    second = max_of(second, min_of(first, quad));
    first = max_of(first, quad);
  }

  float behind() const {
    float a = 0, b = 0, c = 0;
    const auto take = [&](float q) {
      const float low = a < q ? a : q;
      a = a < q ? q : a;
      const float lower = b < low ? b : low;
      b = b < low ? low : b;
      c = c < lower ? lower : c;
    };
    for (int i = 0; i < L; i += 4) {
      take(first[i]);
      take(second[i]);
      take(third[i]);
    }
    return c;
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

// One plane: writes codes (chunk) and the quads apart; returns the sum of the values.
inline int32_t round_one_plane(const float* from, int64_t length, int64_t chunk, float inverse,
                               int8_t* codes, Apart* apart) {
  float values[kMaxChunk + L];
  uint64_t far[kMaxChunk / 64] = {0};
  vf sum = {};
  int64_t k = 0;
  if (inverse != 0.0f) {
    for (; k < length; k += L) {
      const vf value = round_to_whole(load<vf>(from + k) * inverse);
      sum += value;
      store(values + k, value);
      far[k / 64] |= static_cast<uint64_t>(V::bits(max_of(value, -value) > 127.5f)) << (k % 64);
      put_bytes(codes + k, chunk - k, value);  // of those far off anything: they are written below
    }
  }
  for (; k < chunk; ++k) codes[k] = 0;
  *apart = {};
  int found = 0;
  for (int64_t i = 0; i < kMaxChunk / 64; ++i) {
    while (far[i] && found < kApart) {
      const int64_t quad = i * 16 + __builtin_ctzll(far[i]) / 4;
      far[i] &= ~(uint64_t{15} << (quad % 16 * 4));
      int8_t whole[4];
      for (int j = 0; j < 4; ++j) {
        const int32_t value = 4 * quad + j < length ? static_cast<int32_t>(values[4 * quad + j]) : 0;
        const bool is_far = value > 127 || value < -127;
        const int32_t steps = is_far ? (value + 64) >> 7 : 0;
        whole[j] = static_cast<int8_t>(steps);
        codes[4 * quad + j] = static_cast<int8_t>(value - 128 * steps);
      }
      apart->quad[found] = static_cast<int32_t>(quad);
      __builtin_memcpy(&apart->codes[found++], whole, 4);
    }
  }
  return static_cast<int32_t>(sum_of(sum));
}

inline int32_t round_two_planes(const float* from, int64_t length, int64_t chunk, float inverse,
                                int8_t* codes) {
  vf sum = {};
  int64_t k = 0;
  if (inverse != 0.0f) {
    for (; k < length; k += L) {
      const vf value = round_to_whole(load<vf>(from + k) * inverse);
      sum += value;
      const vf first = round_to_whole(value * 0.0078125f);
      put_bytes(codes + k, chunk - k, first);
      put_bytes(codes + chunk + k, chunk - k, value - first * 128.0f);
    }
  }
  for (; k < chunk; ++k) codes[k] = codes[chunk + k] = 0;
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
    vf poison = {};
    Tops tops;
    for (int64_t k = 0; k < length; k += L) {
      const vf v = load<vf>(from + k), size = max_of(v, -v);
      poison += v * 0.0f;  // NaN if a value isn't finite
      if (out.planes == 1) {
        tops.take(V::quad_max(size));
      } else {
        tops.first = max_of(tops.first, size);
      }
    }
    const float top = max_of(tops.first), bad = sum_of(poison);
    int8_t* codes = out.codes + at * out.planes * chunk;
    Rounding r;
    if (out.planes == 1) {
      const float near = tops.behind(), least = top * 0.0078125f;
      r = rounding_for(127.0f, near > least ? near : least, bad);
      out.sums[at] = round_one_plane(from, length, chunk, r.inverse, codes, out.apart + at);
    } else {
      r = rounding_for(127.0f * 128.0f, top, bad);
      out.sums[at] = round_two_planes(from, length, chunk, r.inverse, codes);
    }
    out.scales[at] = r.scale;
  }
}
