import os
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
# the oldest torch whose stable ABI has all that is used here; a build serves it and every later one
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# sanitizers of gcc to build with, e.g. address,undefined or thread: for `make test-sanitized`, which loads their runtime first
SANITIZE = os.environ.get("REGFRAME_SANITIZE", "")
CHECKED = (
    [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", "-O1", "-g1"]
    if SANITIZE
    else []
)
if "thread" in SANITIZE:
    CHECKED.append("-DREGFRAME_JOINED_THREADS")  # see csrc/cpu/velocity.h
PREFIX = f"-ffile-prefix-map={ROOT}/="  # keeps build paths out of error messages
WINDOWS = sys.platform == "win32"


def sources(*folders: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).glob(f"*{suffix}"))


def flags(*further: str) -> list[str]:
    """Options of the C++ compiler; on Windows that is clang-cl (``CXX=clang-cl``), for Microsoft's has no vector types."""
    if WINDOWS:
        return ["/O2", "/std:c++17", "/EHsc", f"/clang:{PREFIX}", *(flag for flag in further if flag.startswith("-D"))]
    return ["-O3", "-g0", "-std=c++17", PREFIX, *further, *CHECKED]


def ops_extension() -> Extension:
    # a torch without CUDA has nothing to link CUDA kernels with; is_available() would say no on a builder without a GPU
    with_cuda = CUDA_HOME is not None and torch.version.cuda is not None and os.environ.get("REGFRAME_NO_CUDA") != "1"
    cxx = flags("-Wno-psabi", STABLE_ABI)
    nvcc = ["-O3", "-std=c++17", "-DUSE_CUDA", STABLE_ABI, "-Xcompiler", PREFIX]
    files = sources("csrc", "csrc/cpu", suffix=".cpp")
    make = CppExtension
    if with_cuda:
        make = CUDAExtension
        files += sources("csrc/cuda", suffix=".cu")
        cxx.append("-DUSE_CUDA")
    return make(
        "regframe._C",
        files,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=CHECKED[:1],
        depends=[
            file
            for suffix in (".h", ".inc", ".cuh")
            for file in sources("csrc", "csrc/cpu", "csrc/cuda", suffix=suffix)
        ],
        py_limited_api=True,
    )


def host_extension() -> Extension:
    # pybind11 is not limited-API clean, so it has a module of its own, which links no torch
    return Extension(
        "regframe._host",
        sources("csrc/host", suffix=".cpp"),
        depends=sources("csrc/host", suffix=".h"),
        include_dirs=[pybind11.get_include(), str(ROOT / "csrc" / "host")],
        extra_compile_args=flags("-fvisibility=hidden"),
        extra_link_args=[] if WINDOWS else ["-pthread", *CHECKED[:1]],
        language="c++",
    )


setup(ext_modules=[ops_extension(), host_extension()], cmdclass={"build_ext": BuildExtension})
