// Weights in panels: the layout that every CPU kernel reads, the same bytes on every instruction set.
//
// W (N, K) = (codes - zeros) * scales, codes int4 or int8 in groups along K, or bfloat16 values
// without scales. 64 rows are a panel; a panel is a run of chunks, one behind the other, so that a
// product reads memory in a straight line:
//
//   chunk   = codes, 64 scales (bfloat16 or float32), 64 zero points (uint8, if not symmetric)
//   int4    per 8 columns 256 bytes: byte 4*r + j holds column j of row r in its lower half, column
//           4 + j in its upper half
//   int8    per 4 columns 256 bytes: byte 4*r + j holds column j of row r
//   bf16    per column 128 bytes, no scales
//
// Codes and zero points are stored unsigned (code + 8, code + 128). A group longer than 128 columns
// is cut into chunks of equal length that repeat its scale; columns that fill a chunk up to a
// multiple of 8 have code 0 and are multiplied by 0.
#pragma once

#include <cstdint>

namespace soroq {

constexpr int64_t kPanel = 64;      // rows of a panel
constexpr int64_t kMaxChunk = 128;  // columns of a chunk

struct PanelShape {
  int64_t N, K;
  int bits;          // 4, 8, or 16: bfloat16
  int64_t group;     // columns that share a scale; K for the whole row
  bool symmetric;    // no zero points stored
  bool bf16_scales;  // else float32

  int64_t chunks_per_group() const { return (group + kMaxChunk - 1) / kMaxChunk; }
  int64_t n_groups() const { return (K + group - 1) / group; }
  int64_t n_chunks() const { return n_groups() * chunks_per_group(); }
  int64_t n_panels() const { return (N + kPanel - 1) / kPanel; }
  // Columns of a chunk, padding included: a multiple of 8.
  int64_t chunk() const {
    const int64_t c = chunks_per_group();
    return ((group + c - 1) / c + 7) / 8 * 8;
  }
  // First column of chunk i, and how many real ones it has (0 beyond the end of K).
  int64_t chunk_start(int64_t i) const {
    const int64_t c = chunks_per_group();
    return i / c * group + i % c * chunk();
  }
  int64_t chunk_length(int64_t i) const {
    const int64_t c = chunks_per_group();
    int64_t length = group - i % c * chunk();
    if (length > chunk()) length = chunk();
    const int64_t left = K - chunk_start(i);
    if (length > left) length = left;
    return length < 0 ? 0 : length;
  }
  int64_t code_bytes() const { return chunk() * kPanel * bits / 8; }
  int64_t scale_bytes() const { return bits == 16 ? 0 : kPanel * (bf16_scales ? 2 : 4); }
  int64_t zero_bytes() const { return bits == 16 || symmetric ? 0 : kPanel; }
  int64_t chunk_bytes() const { return code_bytes() + scale_bytes() + zero_bytes(); }
  int64_t panel_bytes() const { return n_chunks() * chunk_bytes(); }
  int64_t total_bytes() const { return n_panels() * panel_bytes(); }
};

// What a product needs of a shape, without its divisions.
struct PanelView {
  int64_t columns, n_chunks, code_bytes, scale_bytes, chunk_bytes;
  int bits;
  bool symmetric, bf16_scales;
};

struct PanelWeight : PanelShape {
  const uint8_t* data;  // total_bytes(), on a 64-byte boundary
  PanelView view;
  const uint8_t* panel(int64_t p) const { return data + p * view.n_chunks * view.chunk_bytes; }

  // Says where the panels lie, once the shape is known.
  void place(const uint8_t* where) {
    data = where;
    view = {chunk(),       n_chunks(), code_bytes(), scale_bytes(),
            chunk_bytes(), bits,       symmetric,    bf16_scales};
  }
};

// Writes rows first to first + count (first a multiple of 64; the panel's missing rows are zeroed)
// from words of the `pack-quantized` layout: words (count, ceil(K * bits / 32)); scales (count,
// n_groups) as 16- or 32-bit patterns; zeros int8 (count, n_groups) signed code units, or null.
void pack_panels(const PanelShape& shape, uint8_t* data, int64_t first, int64_t count,
                 const uint32_t* words, const void* scales, const int8_t* zeros);

// The same for bfloat16 values (count, K).
void pack_panels_bf16(const PanelShape& shape, uint8_t* data, int64_t first, int64_t count,
                      const uint16_t* values);

// Inverts pack_panels for rows first to first + count: codes int8 (count, K), scales as stored,
// zeros signed (untouched if symmetric).
void unpack_panels(const PanelWeight& w, int64_t first, int64_t count, int8_t* codes, void* scales,
                   int8_t* zeros);

// row (K) = W[n].
void gather_row(const PanelWeight& w, int64_t n, float* row);

}  // namespace soroq
