"""The part of ggml's C interface that a product needs, through ctypes.

No structure of its is read or written but `ggml_init_params` and `ggml_threadpool`'s parameters
(filled by the library itself), so that one face serves all versions of llama.cpp and ik_llama.cpp.
Libraries are looked for in the directory that SOROQ_LLAMA_CPP or SOROQ_IK_LLAMA_CPP names, and
where the Python packages llama-cpp-python and ik-llama-cpp-python put theirs; bench/peers/README.md
says how to get builds with AVX-512. Where a directory has a CPU library for each instruction set,
llama.cpp itself takes the best.
"""

import ctypes
import importlib.util
import os
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

F32 = 0
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "IQ4_XS": 23}  # enum ggml_type
PLACES = {
    "llama.cpp": ("SOROQ_LLAMA_CPP", "llama_cpp"),
    "ik_llama.cpp": ("SOROQ_IK_LLAMA_CPP", "ik_llama_cpp"),
}
_CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
ALIGN = 64

# name: (result, *arguments)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ggml_free": (None, c_void_p),
    "ggml_tensor_overhead": (c_size_t,),
    "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_get_data": (c_void_p, c_void_p),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_row_size": (c_size_t, c_int, c_int64),
    "ggml_quantize_chunk": (
        *(c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p),
    ),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
    "ggml_backend_buft_alloc_buffer": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_buft_get_alloc_size": (c_size_t, c_void_p, c_void_p),
    "ggml_backend_buffer_get_base": (c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_tensor_alloc": (None, c_void_p, c_void_p, c_void_p),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
}


_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class _Feature(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("value", c_char_p)]


def directory(flavour: str) -> Path | None:
    """Return where the libraries of "llama.cpp" or "ik_llama.cpp" lie, None if nowhere."""
    variable, package = PLACES[flavour]
    if os.environ.get(variable):
        return Path(os.environ[variable])
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "lib"


class Ggml:
    """The libraries of one directory, loaded, with a CPU backend of so many threads.

    Raises OSError when the directory has no libggml.
    """

    def __init__(self, flavour: str, folder: Path, threads: int) -> None:
        self.flavour = flavour
        found = sorted(folder.glob("libggml*.so*"))
        self._libraries = [_load(p) for p in found if "-cpu" not in p.name and _is_core(p)]
        if not self._libraries:
            raise OSError(f"{folder} has no libggml*.so")
        self._loaded: dict[str, Any] = {}
        self.repacking: int | None = None  # buffer type that lays weights out anew
        self.pool: int | None = None  # threads that last, llama.cpp's; ik_llama.cpp has OpenMP's
        if flavour == "llama.cpp":
            self._start_llama(folder, threads)
        else:
            self._start_ik(threads)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a C function by name."""
        if name not in self._loaded:
            function = self._find(name)
            function.restype, *function.argtypes = _FUNCTIONS[name]
            self._loaded[name] = function
        return self._loaded[name](*arguments)

    def call_as(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        """Call a C function whose types stand beside the values: (type, value), …"""
        function = self._find(name)
        function.restype, function.argtypes = result, [kind for kind, _ in arguments]
        return function(*(value for _, value in arguments))

    def has(self, name: str) -> bool:
        """Tell whether these libraries have a function."""
        return any(hasattr(library, name) for library in self._libraries)

    def repacks(self, product: int) -> bool:
        """Tell whether a product of a weight in a `repacking` buffer has a kernel for it."""
        given = ((c_void_p, self._device), (c_void_p, product))
        return bool(self.call_as("ggml_backend_dev_supports_op", c_bool, *given))

    def repack_ik(self, tensor: int, kind: int) -> bool:
        """Lay a weight of ik_llama.cpp's out anew, in place; return whether it has a way to."""
        if self.call_as("iqk_repacked_type", c_int, (c_void_p, tensor)) == kind:
            return False
        self.call_as("iqk_repack_tensor", None, (c_void_p, tensor))
        return True

    def _find(self, name: str) -> Any:
        for library in self._libraries:
            if hasattr(library, name):
                return getattr(library, name)
        raise AttributeError(f"{self.flavour} has no function {name}")

    def _start_llama(self, folder: Path, threads: int) -> None:
        """Load the best CPU library, start a thread pool that lasts, find the repacking buffers."""
        self._silent = _LOG(lambda *_: None)  # or it tells of each weight it lays out
        self.call_as("ggml_log_set", None, (_LOG, self._silent), (c_void_p, None))
        if self.has("ggml_backend_load_all_from_path"):
            self.call_as("ggml_backend_load_all_from_path", None, (c_char_p, str(folder).encode()))
        device = self.call_as("ggml_backend_dev_by_type", c_void_p, (c_int, _CPU_DEVICE))
        if not device:
            raise OSError(f"{folder} has no CPU library of llama.cpp that runs here")
        self._device = device
        registry = self.call_as("ggml_backend_dev_backend_reg", c_void_p, (c_void_p, device))
        self.buffer_type = self.call_as(
            "ggml_backend_dev_buffer_type", c_void_p, (c_void_p, device)
        )
        no_parameters = ((c_void_p, device), (c_char_p, None))
        self.backend = self.call_as("ggml_backend_dev_init", c_void_p, *no_parameters)

        def inside(name: bytes, kind: Any) -> Any:
            where = ((c_void_p, registry), (c_char_p, name))
            return kind(self.call_as("ggml_backend_reg_get_proc_address", c_void_p, *where))

        set_number = ctypes.CFUNCTYPE(None, c_void_p, c_int)
        inside(b"ggml_backend_set_n_threads", set_number)(self.backend, threads)
        # room for ggml_threadpool_params, whose first part are 512 flags; ggml fills it
        parameters = ctypes.create_string_buffer(4096)
        filled = ((c_void_p, ctypes.addressof(parameters)), (c_int, threads))
        self.call_as("ggml_threadpool_params_init", None, *filled)
        new_pool = inside(b"ggml_threadpool_new", ctypes.CFUNCTYPE(c_void_p, c_void_p))
        self.pool = new_pool(ctypes.addressof(parameters))
        use_pool = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
        inside(b"ggml_backend_cpu_set_threadpool", use_pool)(self.backend, self.pool)
        extra = inside(
            b"ggml_backend_dev_get_extra_bufts", ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)
        )(device)
        if extra and extra[0]:
            self.repacking = extra[0]
        listed = inside(
            b"ggml_backend_get_features", ctypes.CFUNCTYPE(POINTER(_Feature), c_void_p)
        )(registry)
        self.features = list[str]()
        while listed[len(self.features)].name:
            self.features.append(listed[len(self.features)].name.decode())

    def _start_ik(self, threads: int) -> None:
        self.backend = self.call_as("ggml_backend_cpu_init", c_void_p)
        number = ((c_void_p, self.backend), (c_int, threads))
        self.call_as("ggml_backend_cpu_set_n_threads", None, *number)
        self.buffer_type = self.call_as("ggml_backend_cpu_buffer_type", c_void_p)
        flags = ("avx2", "avx512", "avx512_vbmi", "avx512_vnni", "avx512_bf16")
        self.features = [f.upper() for f in flags if self.call_as(f"ggml_cpu_has_{f}", c_int)]


class Arena:
    """Tensors, graphs and the memory they lie in; all is given back with this object."""

    def __init__(self, ggml: Ggml, tensors: int, graphs: int = 0, nodes: int = 0) -> None:
        self._ggml, self._buffers = ggml, list[int]()
        size = (tensors + 1) * int(ggml.call("ggml_tensor_overhead"))
        size += graphs * int(ggml.call("ggml_graph_overhead_custom", nodes, False))
        parameters = _InitParams(size + 4096, None, True)  # only descriptions lie in the context
        self._context = ggml.call_as("ggml_init", c_void_p, (_InitParams, parameters))
        self._nodes = nodes

    def __del__(self) -> None:
        for buffer in self._buffers:
            self._ggml.call("ggml_backend_buffer_free", buffer)
        self._ggml.call("ggml_free", self._context)

    def matrix(self, kind: int, rows: int, columns: int) -> int:
        """Return a tensor of a ggml type, with no memory yet."""
        return int(self._ggml.call("ggml_new_tensor_2d", self._context, kind, columns, rows))

    def product(self, weight: int, x: int) -> int:
        """Return y (M, N) = x (M, K) · Wᵀ, with no memory yet."""
        return int(self._ggml.call("ggml_mul_mat", self._context, weight, x))

    def place(self, buffer_type: int, tensors: list[int]) -> None:
        """Give tensors memory, one behind the other."""
        ggml = self._ggml
        sizes = [
            int(ggml.call("ggml_backend_buft_get_alloc_size", buffer_type, t)) for t in tensors
        ]
        room = sum(-(-size // ALIGN) * ALIGN for size in sizes) + ALIGN
        buffer = int(ggml.call("ggml_backend_buft_alloc_buffer", buffer_type, room))
        self._buffers.append(buffer)
        address = -(-int(ggml.call("ggml_backend_buffer_get_base", buffer)) // ALIGN) * ALIGN
        for tensor, size in zip(tensors, sizes, strict=True):
            ggml.call("ggml_backend_tensor_alloc", buffer, tensor, address)
            address += -(-size // ALIGN) * ALIGN

    def place_over(self, tensor: int, other: int) -> None:
        """Give a tensor the memory of `other`, the last buffer's."""
        address = self._ggml.call("ggml_get_data", other)
        self._ggml.call("ggml_backend_tensor_alloc", self._buffers[-1], tensor, address)

    def graph(self, products: list[int]) -> int:
        """Return a graph of at most `nodes` tensors that computes products in this order."""
        graph = int(self._ggml.call("ggml_new_graph_custom", self._context, self._nodes, False))
        for product in products:
            self._ggml.call("ggml_build_forward_expand", graph, product)
        return graph

    def compute(self, graph: int) -> None:
        """Run a graph."""
        ggml = self._ggml
        status = ggml.call("ggml_backend_graph_compute", ggml.backend, graph)
        if status != 0:
            raise RuntimeError(f"{ggml.flavour}: ggml_backend_graph_compute returned {status}")


def _is_core(path: Path) -> bool:
    """Tell libggml and libggml-base from backends of other devices."""
    return path.name.split(".")[0] in ("libggml", "libggml-base")


def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
