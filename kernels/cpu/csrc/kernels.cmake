# SOROQ_KERNEL_SOURCES: everything that knows no Python. One file an instruction set, each with flags
# of its own; which of them runs is decided by the processor at run time.
set(_csrc ${CMAKE_CURRENT_LIST_DIR})
set(SOROQ_KERNEL_SOURCES
  ${_csrc}/ceilings.cpp ${_csrc}/decoder.cpp ${_csrc}/int4_scalar.cpp ${_csrc}/isa.cpp ${_csrc}/matmul.cpp
  ${_csrc}/panels.cpp ${_csrc}/pool.cpp ${_csrc}/simd_generic.cpp)

# -ffp-contract: multiply-adds in one instruction, as everywhere outside of strict ISO C++.
# -Wno-…uninitialized: gcc 12 says it of its own intrinsics.
set(_simd "-O3;-ffp-contract=fast;-Wno-psabi;-Wno-uninitialized")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND _simd "-Wno-maybe-uninitialized")  # clang has no warning of that name
endif()
set_source_files_properties(${_csrc}/simd_generic.cpp PROPERTIES COMPILE_OPTIONS "${_simd}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(_avx2 "${_simd};-mavx2;-mfma")
  list(APPEND SOROQ_KERNEL_SOURCES
    ${_csrc}/simd_avx2.cpp ${_csrc}/simd_avxvnni.cpp ${_csrc}/simd_avx512.cpp)
  set_source_files_properties(${_csrc}/simd_avx2.cpp PROPERTIES COMPILE_OPTIONS "${_avx2}")
  set_source_files_properties(${_csrc}/simd_avxvnni.cpp PROPERTIES
    COMPILE_OPTIONS "${_avx2};-mavxvnni")
  set(_avx512 "${_avx2};-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni")
  set_source_files_properties(${_csrc}/simd_avx512.cpp PROPERTIES COMPILE_OPTIONS "${_avx512}")
  # AMX needs gcc 11 or clang 12, an assembler that knows it, and Linux's permission.
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_FLAGS "-mamx-tile -mamx-int8")
  check_cxx_source_compiles("
    #include <immintrin.h>
    int main() { _tile_dpbsud(0, 1, 2); }" SOROQ_COMPILES_AMX)
  unset(CMAKE_REQUIRED_FLAGS)
  if(SOROQ_COMPILES_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    list(APPEND SOROQ_KERNEL_SOURCES ${_csrc}/simd_amx.cpp)
    set_source_files_properties(${_csrc}/simd_amx.cpp PROPERTIES
      COMPILE_OPTIONS "${_avx512};-mamx-tile;-mamx-int8")
    set_source_files_properties(${_csrc}/isa.cpp PROPERTIES COMPILE_DEFINITIONS SOROQ_AMX)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  list(APPEND SOROQ_KERNEL_SOURCES ${_csrc}/simd_neon.cpp ${_csrc}/simd_neon_i8mm.cpp)
  set_source_files_properties(${_csrc}/simd_neon.cpp PROPERTIES
    COMPILE_OPTIONS "${_simd};-march=armv8.2-a+dotprod")
  set_source_files_properties(${_csrc}/simd_neon_i8mm.cpp PROPERTIES
    COMPILE_OPTIONS "${_simd};-march=armv8.2-a+dotprod+i8mm")
endif()
