"""CUDA C++ kernels for few tokens, in a library of their own. Importing this loads nothing."""
