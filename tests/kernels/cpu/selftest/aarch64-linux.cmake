# 64-bit Arm from another machine, with Debian's g++-aarch64-linux-gnu; what it builds needs no
# libraries there: qemu-aarch64 -cpu max selftest
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT "-static")
set(CMAKE_CROSSCOMPILING_EMULATOR "qemu-aarch64;-cpu;max")
