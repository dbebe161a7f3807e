"""CPU kernels: the Python face of soroq._cpu, which csrc/ builds."""
