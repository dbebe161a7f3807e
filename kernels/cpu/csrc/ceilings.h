// What this machine can do at most: the figures that a kernel's speed stands beside.
#pragma once

#include <cstdint>

namespace soroq {

// Reads n bytes (a multiple of 64 per member) once with all members of the team; returns a number
// that depends on all of them.
uint64_t read_bytes(const uint8_t* data, int64_t n);

// Runs `rounds` rounds of independent int8 products on every member, from registers; returns how
// many operations (a product and a sum are two) that were.
int64_t run_int8(int64_t rounds);

// The same with float32 multiply-adds.
int64_t run_fma(int64_t rounds);

}  // namespace soroq
