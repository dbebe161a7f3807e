// Which instruction set the kernels use here, and why.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace soroq {

// The kernels in use: the best that this processor has, or the one SOROQ_CPU_ISA names.
const Kernels& kernels();

// Why those: one line, e.g. "avx512: the best this processor has".
std::string isa_reason();

// Names of all that this processor can run, best first; the last is "generic".
std::vector<std::string> usable_isas();

// Uses the kernels called `name` from now on. Returns false if they can't run here.
bool select_isa(const std::string& name);

}  // namespace soroq
