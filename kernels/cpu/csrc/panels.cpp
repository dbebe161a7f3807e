#include "panels.h"

#include <cstring>

namespace soroq {

namespace {

// Where the code of (row r, column k) of a chunk lies, and in which half of the byte for int4.
int64_t byte_of(int bits, int64_t r, int64_t k) {
  if (bits == 4) return k / 8 * 256 + r * 4 + k % 4;
  if (bits == 8) return k / 4 * 256 + r * 4 + k % 4;
  return k * 2 * kPanel + r * 2;
}

int shift_of(int64_t k) { return k % 8 < 4 ? 0 : 4; }

uint8_t code_of(const uint32_t* row, int bits, int64_t k) {
  const int64_t per_word = 32 / bits;
  return static_cast<uint8_t>(row[k / per_word] >> (k % per_word * bits) & ((1u << bits) - 1));
}

uint8_t stored_code(const uint8_t* chunk, int bits, int64_t r, int64_t k) {
  const uint8_t byte = chunk[byte_of(bits, r, k)];
  return bits == 8 ? byte : byte >> shift_of(k) & 15;
}

float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float stored_scale(const PanelShape& s, const uint8_t* chunk, int64_t r) {
  const uint8_t* scales = chunk + s.code_bytes();
  if (s.bf16_scales) {
    uint16_t bits;
    std::memcpy(&bits, scales + 2 * r, 2);
    return widen(bits);
  }
  float value;
  std::memcpy(&value, scales + 4 * r, 4);
  return value;
}

void clear_panels(const PanelShape& s, uint8_t* data, int64_t first, int64_t count) {
  const int64_t panels = (count + kPanel - 1) / kPanel;
  std::memset(data + first / kPanel * s.panel_bytes(), 0, panels * s.panel_bytes());
}

}  // namespace

void pack_panels(const PanelShape& s, uint8_t* data, int64_t first, int64_t count,
                 const uint32_t* words, const void* scales, const int8_t* zeros) {
  const int64_t n_words = (s.K * s.bits + 31) / 32;
  const int64_t scale_size = s.bf16_scales ? 2 : 4;
  const int offset = 1 << (s.bits - 1);
  clear_panels(s, data, first, count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = first + i, r = n % kPanel;
    uint8_t* chunk = data + n / kPanel * s.panel_bytes();
    const uint32_t* row = words + i * n_words;
    for (int64_t c = 0; c < s.n_chunks(); ++c, chunk += s.chunk_bytes()) {
      const int64_t start = s.chunk_start(c), length = s.chunk_length(c);
      for (int64_t k = 0; k < length; ++k) {
        const uint8_t code = code_of(row, s.bits, start + k);
        uint8_t& byte = chunk[byte_of(s.bits, r, k)];
        byte = s.bits == 8 ? code : static_cast<uint8_t>(byte | code << shift_of(k));
      }
      const int64_t at = i * s.n_groups() + c / s.chunks_per_group();
      std::memcpy(chunk + s.code_bytes() + r * scale_size,
                  static_cast<const uint8_t*>(scales) + at * scale_size, scale_size);
      if (!s.symmetric) {
        chunk[s.code_bytes() + s.scale_bytes() + r] = static_cast<uint8_t>(zeros[at] + offset);
      }
    }
  }
}

void pack_panels_bf16(const PanelShape& s, uint8_t* data, int64_t first, int64_t count,
                      const uint16_t* values) {
  clear_panels(s, data, first, count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = first + i;
    uint8_t* chunk = data + n / kPanel * s.panel_bytes();
    for (int64_t c = 0; c < s.n_chunks(); ++c, chunk += s.chunk_bytes()) {
      for (int64_t k = 0; k < s.chunk_length(c); ++k) {
        std::memcpy(chunk + byte_of(16, n % kPanel, k), values + i * s.K + s.chunk_start(c) + k, 2);
      }
    }
  }
}

void unpack_panels(const PanelWeight& w, int64_t first, int64_t count, int8_t* codes, void* scales,
                   int8_t* zeros) {
  const int offset = 1 << (w.bits - 1);
  const int64_t scale_size = w.bf16_scales ? 2 : 4;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = first + i, r = n % kPanel;
    const uint8_t* chunk = w.panel(n / kPanel);
    for (int64_t c = 0; c < w.n_chunks(); ++c, chunk += w.chunk_bytes()) {
      int8_t* out = codes + i * w.K + w.chunk_start(c);
      for (int64_t k = 0; k < w.chunk_length(c); ++k) {
        out[k] = static_cast<int8_t>(stored_code(chunk, w.bits, r, k) - offset);
      }
      const int64_t at = i * w.n_groups() + c / w.chunks_per_group();
      std::memcpy(static_cast<uint8_t*>(scales) + at * scale_size,
                  chunk + w.code_bytes() + r * scale_size, scale_size);
      if (!w.symmetric) {
        zeros[at] = static_cast<int8_t>(chunk[w.code_bytes() + w.scale_bytes() + r] - offset);
      }
    }
  }
}

void gather_row(const PanelWeight& w, int64_t n, float* row) {
  const int64_t r = n % kPanel;
  const uint8_t* chunk = w.panel(n / kPanel);
  for (int64_t c = 0; c < w.n_chunks(); ++c, chunk += w.chunk_bytes()) {
    float* out = row + w.chunk_start(c);
    const int64_t length = w.chunk_length(c);
    if (w.bits == 16) {
      for (int64_t k = 0; k < length; ++k) {
        uint16_t bits;
        std::memcpy(&bits, chunk + byte_of(16, r, k), 2);
        out[k] = widen(bits);
      }
      continue;
    }
    const float scale = stored_scale(w, chunk, r);
    const int zero =
        w.symmetric ? 1 << (w.bits - 1) : chunk[w.code_bytes() + w.scale_bytes() + r];
    for (int64_t k = 0; k < length; ++k) {
      out[k] = static_cast<float>(stored_code(chunk, w.bits, r, k) - zero) * scale;
    }
  }
}

}  // namespace soroq
