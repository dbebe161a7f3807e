#define SOROQ_AMX_MODEL
#include "simd_amx.cpp"
